"""What moves the suggested learning rate: shares of variance, a slope, a mean effect."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats

__all__ = ["Decomposition", "Estimate", "decompose", "mean_estimate", "slope"]

RESAMPLES = 2000
"""Bootstrap samples; enough for an interval's ends to be steady to about a percent."""
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 90 % interval, NaN where there is none."""

    value: float
    low: float = nan
    high: float = nan


@dataclass(frozen=True)
class Decomposition:
    """How much of a variance is due to the initialisation, and how much to the data order.

    Variances are in squared units of the values, decades² for log10(lr). ``order_share`` is NaN
    where the total variance is 0.
    """

    total_variance: float
    order_variance: float
    order_share: Estimate

    @property
    def init_variance(self) -> float:
        """What the initialisation adds; a negative difference, which chance allows, counts as 0."""
        return max(0.0, self.total_variance - self.order_variance)


def decompose(varied: list[float], order_only: list[float], seed: int = 0) -> Decomposition:
    """Split the variance of a suggestion between initialisation and data order.

    A test's value is taken to be ``μ + initialisation + order``, the two effects independent and
    additive. Then ``varied`` has the sum of their variances, ``order_only`` that of the order
    alone, and the difference is the initialisation's. The order's effect is measured at one
    initialisation: the shares mean what they say only if it is as large at the others.

    Parameters
    ----------
    varied
        Two or more values, log10 of the suggested maximum for example, of tests that differ in
        both.
    order_only
        The same of tests on the same weights in different orders.
    seed
        Of the bootstrap: the same values and seed give the same interval.

    Returns
    -------
    Decomposition
        With unbiased variances (divided by n - 1) and the percentile bootstrap interval of 2,000
        resamples of both samples (Efron & Tibshirani 1993, ch. 13). Resamples of ``varied``
        without any spread are left out. With 20 tests of each kind the interval is wide, and
        misses the truth somewhat more often than it says.
    """
    both, order = np.array(varied), np.array(order_only)
    total, order_variance = float(_variance(both)), float(_variance(order))
    if total == 0:
        return Decomposition(total, order_variance, Estimate(nan))
    rng = np.random.default_rng(seed)
    totals = _variance(rng.choice(both, (RESAMPLES, len(both))))
    orders = _variance(rng.choice(order, (RESAMPLES, len(order))))
    shares = np.minimum(1.0, orders[totals > 0] / totals[totals > 0])
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    share = min(1.0, order_variance / total)
    return Decomposition(total, order_variance, Estimate(share, low, high))


def slope(batch_sizes: list[float], lrs: list[float]) -> Estimate:
    """Fit the exponent p of ``lr ∝ batch_size^p`` by least squares on log axes.

    Linear scaling is 1 (Goyal et al. 2017, arXiv 1706.02677), square root scaling 0.5
    (Krizhevsky 2014, arXiv 1404.5997). The t interval has k - 2 degrees of freedom; there is none
    for k = 2 points. At least two batch sizes must differ.
    """
    # Not scipy.stats.linregress, whose standard error is NaN where all suggestions are equal.
    x, y = np.log10(batch_sizes), np.log10(lrs)
    x, y = x - x.mean(), y - y.mean()
    value, freedom = float(x @ y / (x @ x)), len(x) - 2
    residual = y - value * x
    error = sqrt(float(residual @ residual / (x @ x)) / max(freedom, 1))
    return _t_interval(value, error, freedom)


def mean_estimate(values: list[float]) -> Estimate:
    """Return the mean of one or more values, with its t interval (Student 1908) from two on."""
    error = float(stats.sem(values)) if len(values) > 1 else nan
    return _t_interval(float(np.mean(values)), error, len(values) - 1)


def _t_interval(value: float, error: float, freedom: int) -> Estimate:
    if freedom < 1:
        return Estimate(value)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Estimate(value, value - half, value + half)


def _variance(values: np.ndarray) -> np.ndarray:
    """Return the unbiased variance over the last axis; of equal values exactly 0.

    The rounded mean of equal values may differ from them, which would leave a variance.
    """
    return np.where(np.ptp(values, axis=-1) == 0, 0.0, values.var(axis=-1, ddof=1))
