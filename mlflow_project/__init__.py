"""The stages as MLflow runs, and the hand-off between them.

>>> handoff = track_range_test(model, optimizer, loss_fn, loader)  # doctest: +SKIP
>>> handoff = load_handoff(run_id)                               # doctest: +SKIP
>>> handoff.load_weights(model)                                  # doctest: +SKIP
>>> scheduler = handoff.scheduler(optimizer, total_steps=1000)   # doctest: +SKIP
"""

from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.stages.tracked_test import track_range_test

__all__ = ["Handoff", "load_handoff", "track_range_test"]
