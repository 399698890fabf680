"""The learning rates that a range test goes through, one per iteration, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from lrrt_stage.errors import unknown_name
from lrrt_stage.settings import check_choices, require, setting

__all__ = ["MIN_ITERATIONS", "RAMPS", "REFERENCE_ITERATIONS", "RangeTestOptions", "ramp"]

RAMPS: dict[str, Callable[..., np.ndarray]] = {
    "exponential": np.geomspace,
    "linear": np.linspace,
}
"""Kind of ramp -> function of (first, last, number of values)."""
MIN_ITERATIONS = 10
ONE_EPOCH_BUT_AT_LEAST = REFERENCE_ITERATIONS = 100


def ramp(lr_start: float, lr_end: float, iterations: int, kind: str = "exponential") -> np.ndarray:
    """Return the learning rate of every iteration, shape ``[iterations]``, both ends included.

    The exponential ramp multiplies by a constant factor at every iteration (Smith 2015,
    arXiv 1506.01186, used the linear one; the exponential covers nine decades evenly).
    """
    if kind not in RAMPS:
        raise unknown_name("ramp", kind, RAMPS)
    return RAMPS[kind](lr_start, lr_end, iterations)


@dataclass(frozen=True)
class RangeTestOptions:
    """The ramp and when to stop."""

    lr_start: float = setting(1e-7, "First learning rate.")
    lr_end: float = setting(100.0, "Last learning rate.")
    ramp: str = setting("exponential", "How the learning rate grows.", choices=RAMPS)
    iterations: int | None = setting(
        None, "Optimizer steps; none: one epoch, but at least 100 (the data is reshuffled)."
    )
    stop_multiple: float | None = setting(
        4.0, "Stop when the smoothed loss passes this multiple of its best; none: never."
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name, remedy in (("lr_start", "1e-7"), ("lr_end", "100")):
            value = getattr(self, name)
            require(
                value > 0 and isfinite(value),
                f"{name}={value:g} must be positive and finite: try {remedy}",
            )
        require(
            self.lr_start < self.lr_end,
            f"lr_start={self.lr_start:g} is not below lr_end={self.lr_end:g}: "
            "lower lr_start or raise lr_end",
        )
        require(
            self.iterations is None or self.iterations >= MIN_ITERATIONS,
            f"iterations={self.iterations} is fewer than {MIN_ITERATIONS}: "
            "raise it, or use none for one epoch",
        )
        require(
            self.stop_multiple is None or self.stop_multiple > 1,
            f"stop_multiple={self.stop_multiple} is not above 1: use none to switch it off",
        )

    @property
    def reference(self) -> RangeTestOptions:
        """The ramp to the same end that the rule ``robust`` reads, whatever this one is.

        More iterations are another experiment: the network has learnt more before every learning
        rate is reached, and the loss rises elsewhere, by a third of a decade for ten times as
        many. Read from the same ramp, the answer is the same for every ``lr_start`` and number of
        iterations, and one epoch of a large data set is read as one of a small is.
        """
        lr_start = min(type(self).lr_start, self.lr_end / 10)
        return replace(self, lr_start=lr_start, ramp="exponential", iterations=REFERENCE_ITERATIONS)

    def learning_rates(self, batches: Iterable[Any], accumulate: int) -> np.ndarray:
        """Return the learning rate of every iteration for this data, shape ``[iterations]``."""
        iterations = self.iterations_for(batches, accumulate)
        return ramp(self.lr_start, self.lr_end, iterations, self.ramp)

    def iterations_for(self, batches: Iterable[Any], accumulate: int) -> int:
        """Return the number of steps for this data: one epoch, but at least 100."""
        if self.iterations is not None:
            return self.iterations
        try:
            epoch = len(batches) // accumulate  # type: ignore[arg-type]
        except TypeError:
            epoch = 0
        return max(epoch, ONE_EPOCH_BUT_AT_LEAST)
