"""The stages as MLflow runs, and the hand-off between them.

>>> handoff = track_range_test(model, optimizer, loss_fn, loader)  # doctest: +SKIP
>>> handoff = load_handoff(run_id)                               # doctest: +SKIP
>>> handoff.load_weights(model)                                  # doctest: +SKIP
>>> scheduler = handoff.scheduler(optimizer, total_steps=1000)   # doctest: +SKIP
"""

import lazy_loader

# The names in __init__.pyi, each imported at its first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
