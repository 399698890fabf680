"""What the callbacks share: the tracked test, and the learning rates that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlflow

from lrrt_stage import LRRTError
from lrrt_stage.adapters.arguments import RangeTestArguments
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.stages.tracked_test import track_range_test

__all__ = ["test_and_apply"]

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Entries of a parameter group in which torch's schedulers keep learning rates."""
SCHEDULED = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "_last_lr")
"""The same, of attributes of schedulers."""


def test_and_apply(
    arguments: RangeTestArguments, schedulers: Sequence[Any], options: dict[str, Any]
) -> Handoff:
    """Run the tracked test, and scale every learning rate so that the peak is its maximum.

    It is the maximum of the suggested range. Parameter groups and schedulers keep their ratios, so
    that a schedule has the same form as before. An active run gets the lineage of a training.
    """
    optimizer = arguments["optimizer"]
    groups = optimizer.param_groups
    # A schedule may begin far below its peak.
    rates = [group[name] for group in groups for name in RATES if name in group]
    rates += [lr for scheduler in schedulers for lr in getattr(scheduler, "max_lrs", [])]
    peak = max(map(float, rates))
    if peak == 0:
        raise LRRTError(
            "all learning rates of the optimizer are 0: make it with the ratios that its parameter "
            "groups are to have, such as lr=0.1"
        )
    handoff = track_range_test(**arguments, **options)
    factor = handoff.narrowed().max / peak
    # MLflow's autologging records the learning rate among the defaults.
    for group in [optimizer.defaults, *groups]:
        group.update({name: group[name] * factor for name in RATES if group.get(name) is not None})
    for scheduler in schedulers:
        _scale(scheduler, factor)
    if mlflow.active_run() is not None:
        handoff.track_training()
    return handoff


def _scale(scheduler: Any, factor: float) -> None:
    for name in SCHEDULED:
        value = getattr(scheduler, name, None)
        if value is not None:
            several = isinstance(value, (list, tuple))
            setattr(scheduler, name, [lr * factor for lr in value] if several else value * factor)
    for part in getattr(scheduler, "_schedulers", []):  # of those that chain others
        _scale(part, factor)
