"""The learning-rate range test as a library, for any ``nn.Module``.

>>> curve = range_test(model, optimizer, loss_fn, loader)        # doctest: +SKIP
>>> suggest(curve)                                               # doctest: +SKIP
LRRange(min=0.021, max=0.65)
"""

import lazy_loader

# The names in __init__.pyi, each imported at its first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
