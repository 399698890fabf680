"""What a range test is for: a task, its training, and the refinement between them."""

import lazy_loader

# The names in __init__.pyi, each imported at its first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
