"""Averages of a noisy loss: three exponential ones (article, Fig 3), and one without a lag."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush, heappushpop
from itertools import accumulate
from typing import Any

import numpy as np

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


@lru_cache(maxsize=8)
def _averaged(loss: bytes, average: str, beta: float) -> np.ndarray:
    """Return the average of the float64 losses. Rules read that of one curve after the other."""
    raw = np.frombuffer(loss)
    averaged = np.full(len(raw), np.nan)
    end = finite_length(raw)
    averaged[:end] = _weighted_means(raw[:end], beta, corrected=average != "from-first")
    if average == "biased":
        # Multiplying the corrected average by its correction gives the biased one.
        averaged *= 1 - beta ** np.arange(1, len(raw) + 1)
    return averaged


def _weighted_means(values: np.ndarray, beta: float, *, corrected: bool) -> list[float]:
    """Return the mean of the values up to every one, of weights that decay by β per iteration.

    The corrected mean begins without a past; the other one takes the first value for all of it.
    """
    share = _share_of_new(beta)
    kept = 1 - share
    means: list[float] = values[:1].tolist()
    past, new = 1.0, 1.0 if corrected else share
    for value in values[1:].tolist():
        past *= kept
        mean = means[-1]
        # The mean of equal values is that value, to its last digit.
        if mean != value:
            mean = (past * mean + new * value) / (past + new)
        means.append(mean)
        past = past + new if corrected else 1.0
    return means


def _share_of_new(beta: float) -> float:
    """Return 1 - β with the rounding of pandas, with which earlier curves were averaged."""
    return 1 / (1 + (1 - (1 - beta)) / (1 - beta))


def is_finite(values: np.ndarray | float) -> Any:
    """Return which values are finite, so far that their squares and sums are finite as well."""
    return np.abs(values) <= LARGEST


def finite_length(values: np.ndarray) -> int:
    """Return how many values come before the first that is not finite."""
    return int(np.logical_and.accumulate(is_finite(values)).sum())


def running_quantile(values: np.ndarray, quantile: float) -> np.ndarray:
    """Return for every point that quantile of the values up to it, rounded down to one of them."""
    # Heaps: the values up to the quantile, negated so that the largest is first, and the others.
    lower: list[float] = []
    upper: list[float] = []
    quantiles = []
    for before, value in enumerate(values.tolist()):
        heappush(upper, -heappushpop(lower, -value))
        if len(lower) <= int(quantile * before):
            heappush(lower, -heappop(upper))
        quantiles.append(-lower[0])
    return np.array(quantiles)


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

    kept = 1 - _share_of_new(beta)

    def before(part: np.ndarray) -> np.ndarray:
        return np.array([*accumulate(part.tolist(), lambda total, value: kept * total + value)])

    return before(values) + before(values[::-1])[::-1] - values
