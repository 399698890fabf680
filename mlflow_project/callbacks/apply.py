"""What the callbacks share: the tracked test, and the learning rates that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlflow
from torch.optim import Optimizer

from lrrt_stage.adapters.arguments import RangeTestArguments
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.stages.tracked_test import track_range_test

__all__ = ["test_and_apply"]

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Entries of a parameter group in which torch's schedulers keep learning rates."""


def test_and_apply(
    arguments: Callable[[], RangeTestArguments],
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    options: dict[str, Any],
) -> Handoff:
    """Run the tracked test, and scale every learning rate so that the largest is its maximum.

    It is the maximum of the narrowed range. Parameter groups and schedulers keep their ratios, so
    that a schedule has the same form as before. An active run gets the lineage of a training.
    """
    groups = optimizer.param_groups
    first = [group["lr"] for group in groups]
    for group in groups:
        # A scheduler has set its own first learning rate, which in a warm-up is zero.
        group["lr"] = group.get("initial_lr", group["lr"])
    peak = max(group["lr"] for group in groups)
    handoff = track_range_test(**arguments(), **options)
    factor = handoff.narrowed().max / peak
    for group, lr in zip(groups, first, strict=True):
        group["lr"] = lr
        group.update({name: group[name] * factor for name in RATES if name in group})
    for scheduler in schedulers:
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]
    if mlflow.active_run() is not None:
        handoff.track_training()
    return handoff
