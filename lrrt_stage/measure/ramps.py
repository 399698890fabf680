"""The learning rates of a range test, one per iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lrrt_stage.errors import unknown_name

__all__ = ["RAMPS", "epoch_length", "ramp"]

RAMPS: dict[str, Callable[..., np.ndarray]] = {
    "exponential": np.geomspace,
    "linear": np.linspace,
}
"""Kind of ramp -> function of the first value, the last value, and the number of values."""


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
