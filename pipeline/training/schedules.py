"""Learning-rate schedules over a range. A schedule is one function in :data:`SCHEDULES`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ConstantLR, CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from lrrt_stage import LRRange
from lrrt_stage.errors import unknown_name
from lrrt_stage.measure.step import lr_ratios, require_optimizer
from lrrt_stage.settings import require
from pipeline.data.factories import call

__all__ = ["SCHEDULES", "build_schedule", "find_schedule"]

NOT_BY_NAME = {
    "ReduceLROnPlateau": "needs a metric at every step",
    "LRScheduler": "is the base of others",
    **dict.fromkeys(("LambdaLR", "MultiplicativeLR"), "is made of functions"),
    **dict.fromkeys(("SequentialLR", "ChainedScheduler"), "is made of other schedules"),
}
"""Classes of torch that a name and JSON do not determine -> why."""
OF_THE_RANGE = {"max_lr", "base_lr"}
"""Arguments of schedules that the range sets."""
Rates = list[float]
"""One learning rate per parameter group."""


def find_schedule(name: str) -> Callable[..., LRScheduler]:
    """Return the function of a schedule; raise LRRTError for an unknown name.

    It takes the optimizer, the minima, the maxima, the number of steps, and keyword arguments.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    of_torch = sorted({*lr_scheduler.__all__} - NOT_BY_NAME.keys())
    require(
        name not in NOT_BY_NAME,
        f"schedule {name!r} {NOT_BY_NAME.get(name)}: choose another, or train in a script of your "
        "own with the range of load_handoff",
    )
    if name not in of_torch:
        raise unknown_name("schedule", name, [*SCHEDULES, *of_torch])
    return partial(_of_torch, getattr(lr_scheduler, name))


def build_schedule(
    name: str, optimizer: Optimizer, lr_range: LRRange, total_steps: int, **arguments: Any
) -> LRScheduler:
    """Return a torch scheduler for ``total_steps`` iterations; call ``step()`` after each one.

    The parameter group with the largest learning rate goes through ``lr_range``; the other groups
    keep their ratio to it. A class of ``torch.optim.lr_scheduler`` is made with the maximum as the
    learning rate of the optimizer; its ``T_max``, ``total_iters`` or ``total_steps`` is the number
    of steps, and its ``eta_min`` the smallest minimum, unless they are in ``arguments``. The
    momentum is not cycled.
    """
    function = find_schedule(name)
    require(
        OF_THE_RANGE.isdisjoint(arguments),
        f"schedule_args {arguments} sets learning rates, which are those of the range: leave out "
        f"{' and '.join(sorted(OF_THE_RANGE))}",
    )
    require(
        isinstance(total_steps, int) and total_steps >= 1,
        f"total_steps={total_steps} is no number of steps: give a whole number from 1 on",
    )
    require_optimizer(optimizer)
    ratios = lr_ratios(optimizer)
    low, high = ([lr * ratio for ratio in ratios] for lr in (lr_range.min, lr_range.max))
    for group, peak in zip(optimizer.param_groups, high, strict=True):
        group["lr"] = peak
        group.pop("initial_lr", None)
    return call("schedule", name, function, arguments, optimizer, low, high, max(total_steps, 2))


def _of_torch(
    kind: type[LRScheduler],
    optimizer: Optimizer,
    low: Rates,
    high: Rates,
    steps: int,
    **arguments: Any,
) -> LRScheduler:
    known: dict[str, Any] = dict.fromkeys(("T_max", "total_iters", "total_steps"), steps)
    # eta_min is one number for all groups, of which none may rise to it.
    known |= {"max_lr": high, "base_lr": low, "cycle_momentum": False, "eta_min": min(low)}
    declared = inspect.signature(kind).parameters
    return kind(optimizer, **{k: v for k, v in known.items() if k in declared} | arguments)


def one_cycle(optimizer: Optimizer, low: Rates, high: Rates, steps: int) -> LRScheduler:
    """Rise from the minimum to the maximum in 30 % of the steps, then fall far below (Smith 2018).

    The momentum is constant, as in the range test.
    """
    return OneCycleLR(
        optimizer,
        max_lr=high,
        total_steps=steps,
        # The ratio is the same for all groups; a group whose learning rate is 0 has none.
        div_factor=max(high) / max(low),
        cycle_momentum=False,
    )


def triangular(optimizer: Optimizer, low: Rates, high: Rates, steps: int) -> LRScheduler:
    """Four triangles between minimum and maximum (CLR, Smith 2015)."""
    # Not rounded, so that no fifth triangle begins.
    half: float = steps / 8
    return CyclicLR(optimizer, low, high, half, cycle_momentum=False)  # type: ignore[arg-type]


def warm_restarts(optimizer: Optimizer, low: Rates, high: Rates, steps: int) -> LRScheduler:
    """Three cosines from maximum to minimum, each twice as long (Loshchilov & Hutter 2016)."""
    # 1 + 2 + 4 sevenths of the steps. Torch's own scheduler has one minimum for all groups.
    first, lowest = -(-steps // 7), max(low) / max(high)

    def share_of_maximum(step: int) -> float:
        length = 2 ** math.floor(math.log2(step / first + 1))
        done = (step - first * (length - 1)) / (first * length)
        return lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, share_of_maximum)


def constant(optimizer: Optimizer, low: Rates, high: Rates, steps: int) -> LRScheduler:
    """The maximum at every step."""
    return ConstantLR(optimizer, factor=1.0)


SCHEDULES: dict[str, Callable[[Optimizer, Rates, Rates, int], LRScheduler]] = {
    "one-cycle": one_cycle,
    "triangular": triangular,
    "warm-restarts": warm_restarts,
    "constant": constant,
}
"""Name -> function of the optimizer, the minima, the maxima, and the number of steps."""
