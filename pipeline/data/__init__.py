"""Datasets: two splits in memory or on disk, cut into batches."""

import lazy_loader

# The names in __init__.pyi, each imported at its first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
