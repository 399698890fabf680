"""The learning rates of a range test, one per iteration, and when the test stops early."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lrrt_stage.errors import unknown_name
from lrrt_stage.settings import Options, require, setting

__all__ = ["MIN_ITERATIONS", "RAMPS", "RangeTestOptions", "ramp"]

RAMPS: dict[str, Callable[..., np.ndarray]] = {
    "exponential": np.geomspace,
    "linear": np.linspace,
}
"""Kind of ramp -> function of the first value, the last value, and the number of values."""
MIN_ITERATIONS = 10
MAX_ITERATIONS = 10**7
MIN_EPOCH_ITERATIONS = 100
"""Iterations of a range test of one epoch whose data set has fewer batches: it is reshuffled."""


def ramp(lr_start: float, lr_end: float, iterations: int, kind: str = "exponential") -> np.ndarray:
    """Return the learning rate of every iteration, shape ``[iterations]``, both ends included.

    The exponential ramp multiplies the learning rate by a constant factor at every iteration
    and so covers nine decades evenly. Smith (2015, arXiv 1506.01186) used the linear one.
    """
    if kind not in RAMPS:
        raise unknown_name("ramp", kind, RAMPS)
    # Where two values differ in their last digits alone, rounding could make the ramp fall.
    return np.maximum.accumulate(RAMPS[kind](lr_start, lr_end, iterations).clip(lr_start, lr_end))


def epoch_length(batches: Iterable[Any]) -> int:
    """Return the number of batches in an epoch; 0 if the data has no length."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


@dataclass(frozen=True)
class RangeTestOptions(Options):
    """The learning rates of a range test, and when it stops early."""

    lr_start: float = setting(1e-7, "First learning rate.", above=0)
    lr_end: float = setting(100.0, "Last learning rate.", above=0)
    ramp: str = setting("exponential", "How the learning rate grows.", choices=RAMPS)
    iterations: int | Literal["epoch"] = setting(
        100,
        "Optimizer steps; epoch: one epoch, but at least 100 (the data is reshuffled).",
        minimum=MIN_ITERATIONS,
        maximum=MAX_ITERATIONS,
    )
    stop_multiple: float | None = setting(
        4.0,
        "Stop when the smoothed loss has risen from its minimum by this multiple, less one, of the "
        "spread of the losses so far; none: never.",
        above=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.lr_start < self.lr_end,
            f"lr_start={self.lr_start:g} is not below lr_end={self.lr_end:g}: "
            "lower lr_start or raise lr_end",
        )

    def iterations_for(self, batches: Iterable[Any], accumulate: int) -> int:
        """Return the number of optimizer steps; each takes ``accumulate`` of the ``batches``."""
        if self.iterations != "epoch":
            return self.iterations
        return max(epoch_length(batches) // accumulate, MIN_EPOCH_ITERATIONS)

    def learning_rates(self, batches: Iterable[Any], accumulate: int) -> np.ndarray:
        """Return the learning rate of every iteration, shape ``[iterations]``."""
        iterations = self.iterations_for(batches, accumulate)
        return ramp(self.lr_start, self.lr_end, iterations, self.ramp)
