"""The stages as MLflow runs, and the hand-off between them.

>>> handoff = track_range_test(model, optimizer, loss_fn, loader)  # doctest: +SKIP
>>> handoff = load_handoff(run_id)                               # doctest: +SKIP
>>> handoff.load_weights(model)                                  # doctest: +SKIP
>>> scheduler = handoff.scheduler(optimizer, total_steps=1000)   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_project.handoff.handoff import Handoff, load_handoff
    from mlflow_project.stages.tracked_test import track_range_test

__all__ = ["Handoff", "load_handoff", "track_range_test"]

HOMES = {
    "Handoff": "mlflow_project.handoff.handoff",
    "load_handoff": "mlflow_project.handoff.handoff",
    "track_range_test": "mlflow_project.stages.tracked_test",
}
"""Public name -> its module, imported at its first use: the command has to be able to say that it
was interrupted while it imports torch and MLflow."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
