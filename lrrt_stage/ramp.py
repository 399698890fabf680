"""The learning rates that a range test goes through, one per iteration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lrrt_stage.errors import unknown_name

__all__ = ["RAMPS", "ramp"]

RAMPS: dict[str, Callable[..., np.ndarray]] = {
    "exponential": np.geomspace,
    "linear": np.linspace,
}
"""Kind of ramp -> function of (first, last, number of values)."""


def ramp(lr_start: float, lr_end: float, iterations: int, kind: str = "exponential") -> np.ndarray:
    """Return the learning rate of every iteration, shape ``[iterations]``, both ends included.

    The exponential ramp multiplies by a constant factor at every iteration (Smith 2015,
    arXiv 1506.01186, used the linear one; the exponential covers nine decades evenly).
    """
    if kind not in RAMPS:
        raise unknown_name("ramp", kind, RAMPS)
    return RAMPS[kind](lr_start, lr_end, iterations)
