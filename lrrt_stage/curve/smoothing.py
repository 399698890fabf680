"""Averages of a noisy loss: three exponential ones (article, Fig 3), and one without a lag."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from lrrt_stage.settings import Options, setting

__all__ = [
    "AVERAGES",
    "Smoothing",
    "finite_length",
    "is_finite",
    "running_quantile",
    "zero_phase",
]

AVERAGES = ("biased", "corrected", "from-first")
"""The exponential averages; they differ in how they begin."""
LARGEST = 1e100
"""A larger loss is an explosion, whatever the arithmetic; its square would overflow."""


@dataclass(frozen=True)
class Smoothing(Options):
    """An exponential moving average with factor β; L_t is the raw loss, t = 1, 2, …

    - ``biased``: S_0 = 0, S_t = β S_{t-1} + (1-β) L_t
    - ``corrected``: the same, divided by 1 - β^t (the default of fastai and Keras LR finders)
    - ``from-first``: S_1 = L_1, S_t = β S_{t-1} + (1-β) L_t, without correction

    All three lag behind the raw loss, which moves a suggested maximum up: a loss in the average is
    up to β / (1 - β) iterations old in the mean, 49 for β = 0.98.

    Examples
    --------
    >>> Smoothing("corrected", beta=0.5)([4.0, 1.0]).tolist()
    [4.0, 2.0]
    """

    average: str = setting(
        "corrected", "Exponential average that suggestions are read from.", choices=AVERAGES
    )
    beta: float = setting(
        0.98, "Smoothing factor of the average, 0 (raw loss) to below 1.", minimum=0, below=1
    )

    def __call__(self, loss: np.ndarray | list[float]) -> np.ndarray:
        """Return the average of ``loss``, shape ``[n]``; NaN from a value that is not finite on."""
        raw = np.asarray(loss, dtype=np.float64)
        return _averaged(raw.tobytes(), self.average, self.beta).copy()


@lru_cache(maxsize=256)
def _averaged(loss: bytes, average: str, beta: float) -> np.ndarray:
    """Return the average of the float64 losses. All rules read that of the same curves."""
    raw = np.frombuffer(loss)
    # In pandas, adjust=True is the bias-corrected average, and adjust=False the one from the
    # first value. Multiplying the corrected one by its correction gives the biased one.
    smoothed = pd.Series(raw).ewm(alpha=1 - beta, adjust=average != "from-first").mean().to_numpy()
    if average == "biased":
        smoothed = smoothed * (1 - beta ** np.arange(1, len(raw) + 1))
    return np.where(np.arange(len(raw)) < finite_length(raw), smoothed, np.nan)


def is_finite(values: np.ndarray | float) -> Any:
    """Return which values are finite, so far that their squares and sums are finite as well."""
    return np.abs(values) <= LARGEST


def finite_length(values: np.ndarray) -> int:
    """Return how many values come before the first that is not finite."""
    return int(np.logical_and.accumulate(is_finite(values)).sum())


def running_quantile(values: np.ndarray, quantile: float) -> np.ndarray:
    """Return for every point that quantile of the values up to it, rounded down to one of them."""
    so_far = pd.Series(values).expanding()
    return so_far.quantile(quantile, interpolation="lower").to_numpy()


def zero_phase(loss: np.ndarray | list[float], beta: float) -> np.ndarray:
    """Return the average of ``loss`` over both sides of every point, which has no lag.

    ``Σ_j β^|i-j| L_j / Σ_j β^|i-j|``: the sum of the exponential averages in both directions, in
    which the point itself counts once. Away from the ends, a straight loss does not change. Near
    an end, one side is missing; at the last point, this is the ``corrected`` average.

    Parameters
    ----------
    loss
        Raw losses, shape ``[n]``.
    beta
        Factor per iteration of distance, 0 (raw loss) to below 1. The weights add up to
        ``(1 + β) / (1 - β)`` iterations. If a valley is not much wider than that, and steeper on
        one side, the average moves its minimum to the other side.

    Returns
    -------
    numpy.ndarray
        Shape ``[n]``, computed in O(n). It is NaN from the first value that is not finite; the
        values before are averaged over the finite part only.

    Raises
    ------
    LRRTError
        If ``beta`` is outside [0, 1).

    References
    ----------
    A. V. Oppenheim and R. W. Schafer, *Discrete-Time Signal Processing*, §5.7: a filter with a
    symmetric impulse response has zero phase.

    Examples
    --------
    >>> zero_phase([4.0, 1.0, 4.0], beta=0.5).tolist()
    [3.142857142857143, 2.5, 3.142857142857143]
    """
    Smoothing(beta=beta)  # raises LRRTError for a beta out of its bounds
    raw = np.asarray(loss, dtype=np.float64)
    end = finite_length(raw)
    averaged = np.full(raw.shape, np.nan)
    averaged[:end] = _both_sides(raw[:end], beta) / _both_sides(np.ones(end), beta)
    return averaged


def _both_sides(values: np.ndarray, beta: float) -> np.ndarray:
    """Return ``Σ_j β^|i-j| values_j`` for every i."""

    def before(part: np.ndarray) -> np.ndarray:
        return pd.Series(part).ewm(alpha=1 - beta).sum().to_numpy()

    return before(values) + before(values[::-1])[::-1] - values
