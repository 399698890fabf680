"""The stages as MLflow runs, and the hand-off between them.

>>> handoff = track_range_test(model, optimizer, loss_fn, loader)  # doctest: +SKIP
>>> handoff = load_handoff(run_id)                               # doctest: +SKIP
>>> handoff.load_weights(model)                                  # doctest: +SKIP
>>> scheduler = handoff.scheduler(optimizer, total_steps=1000)   # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_project.handoff.handoff import Handoff, load_handoff
    from mlflow_project.stages.tracked_test import track_range_test

__all__ = ["Handoff", "load_handoff", "track_range_test"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: this takes seconds, and a command must be there
    before, to say in one line that Ctrl-C ended it.
    """
    if name in ("Handoff", "load_handoff"):
        from mlflow_project.handoff import handoff

        return getattr(handoff, name)
    if name == "track_range_test":
        from mlflow_project.stages.tracked_test import track_range_test

        return track_range_test
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
