"""What moves the suggested learning rate: shares of variance, a slope, a paired effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats

from lrrt_stage import LRRTError
from lrrt_stage.settings import require

__all__ = ["Decomposition", "Effect", "Slope", "decompose", "paired_effect", "slope"]

RESAMPLES = 2000
"""Bootstrap samples; enough for an interval's ends to be steady to about a percent."""

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Decomposition:
    """How much of a variance is due to the initialisation, and how much to the data order.

    Variances are in squared units of the values, decades² for log10(lr). The two shares add up
    to 1; they and the interval ``low`` to ``high`` of ``order_share`` are NaN where the total
    variance is 0, since nothing is there to be shared.
    """

    total_variance: float
    order_variance: float
    init_variance: float
    order_share: float
    init_share: float
    low: float
    high: float


@dataclass(frozen=True)
class Slope:
    """A fitted exponent and its confidence interval, NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Effect:
    """A mean difference and its confidence interval, NaN where there is none."""

    mean: float
    low: float
    high: float


def decompose(
    varied: Values, order_only: Values, confidence: float = 0.9, seed: int = 0
) -> Decomposition:
    """Split the variance of a suggestion between initialisation and data order.

    A test's value is taken to be ``μ + initialisation + order``, the two effects independent and
    additive. Then ``varied`` has the sum of their variances, ``order_only`` that of the order
    alone, and the difference is the initialisation's; a negative one, which chance allows, is
    taken as 0. The order's effect is measured at one initialisation: the shares mean what they
    say only if it is as large at the others.

    Parameters
    ----------
    varied
        Shape ``[n]``, n ≥ 2: log10 of the suggested maximum, say, of tests that differ in both.
    order_only
        Shape ``[m]``, m ≥ 2: the same of tests on the same weights, in other orders.
    confidence
        Of the interval for ``order_share``, above 0 and below 1.
    seed
        Of the bootstrap: the same values and seed give the same interval.

    Returns
    -------
    Decomposition
        With unbiased variances (divided by n - 1) and the percentile bootstrap interval of 2,000
        resamples of both samples (Efron & Tibshirani 1993, ch. 13). Resamples of ``varied``
        without any spread are left out. With 20 tests of each kind expect an interval that is
        wide, and that misses the truth somewhat more often than it says.

    Raises
    ------
    LRRTError
        For fewer than 2 values in a sample, a value that is not finite, or a confidence outside
        (0, 1).
    """
    both, order = _sample("varied", varied, 2), _sample("order_only", order_only, 2)
    _require_confidence(confidence)
    total_variance, order_variance = float(_variance(both)), float(_variance(order))
    share, low, high = nan, nan, nan
    if total_variance > 0:
        share = min(1.0, order_variance / total_variance)
        rng = np.random.default_rng(seed)
        totals = _variance(rng.choice(both, (RESAMPLES, len(both))))
        orders = _variance(rng.choice(order, (RESAMPLES, len(order))))
        spread = totals > 0
        shares = np.minimum(1.0, orders[spread] / totals[spread])
        tail = (1 - confidence) / 2
        low, high = np.quantile(shares, [tail, 1 - tail]).tolist()
    return Decomposition(
        total_variance=total_variance,
        order_variance=order_variance,
        init_variance=max(0.0, total_variance - order_variance),
        order_share=share,
        init_share=1 - share,
        low=low,
        high=high,
    )


def slope(batch_sizes: Values, lrs: Values, confidence: float = 0.9) -> Slope:
    """Fit the exponent p of ``lr ∝ batch_size^p`` by least squares on log axes.

    Linear scaling is 1 (Goyal et al. 2017, arXiv 1706.02677), square root scaling 0.5
    (Krizhevsky 2014, arXiv 1404.5997).

    Parameters
    ----------
    batch_sizes, lrs
        Shape ``[k]`` each, positive; a batch size may be there more than once.
    confidence
        Of the t interval with k - 2 degrees of freedom. It is NaN for k = 2, where the line
        goes through both points.

    Raises
    ------
    LRRTError
        For fewer than 2 distinct batch sizes, lengths that differ, a value that is not positive
        and finite, or a confidence outside (0, 1).
    """
    sizes, rates = _sample("batch_sizes", batch_sizes, 2), _sample("lrs", lrs, 2)
    _require_same_length(batch_sizes=sizes, lrs=rates)
    _require_confidence(confidence)
    for name, values in (("batch_sizes", sizes), ("lrs", rates)):
        require(
            bool((values > 0).all()),
            f"{name} holds {values.min():g}: only positive ones have a log",
        )
    distinct = len(np.unique(sizes))
    require(distinct >= 2, f"all batch sizes are {sizes[0]:g}: a slope needs at least 2 distinct")
    # Not scipy.stats.linregress, whose standard error is NaN where all suggestions are equal.
    x, y = np.log10(sizes), np.log10(rates)
    x, y = x - x.mean(), y - y.mean()
    value = float(x @ y / (x @ x))
    residual, freedom = y - value * x, len(x) - 2
    error = sqrt(float(residual @ residual / (x @ x)) / freedom) if freedom > 0 else nan
    half = _half_width(error, freedom, confidence)
    return Slope(value, value - half, value + half)


def paired_effect(before: Values, after: Values, confidence: float = 0.9) -> Effect:
    """Return the mean of ``after - before`` over pairs, with its t interval.

    Parameters
    ----------
    before, after
        Shape ``[k]`` each, k ≥ 1: the values of pair i are ``before[i]`` and ``after[i]``, for
        example log10 of the suggestions for one seed under two settings, which gives decades.
    confidence
        Of the t interval with k - 1 degrees of freedom (Student 1908). It is NaN for k = 1.

    Raises
    ------
    LRRTError
        For no values, lengths that differ, a value that is not finite, or a confidence outside
        (0, 1).
    """
    first, second = _sample("before", before, 1), _sample("after", after, 1)
    _require_same_length(before=first, after=second)
    _require_confidence(confidence)
    difference = second - first
    mean, count = float(difference.mean()), len(difference)
    error = sqrt(float(_variance(difference)) / count) if count > 1 else nan
    half = _half_width(error, count - 1, confidence)
    return Effect(mean, mean - half, mean + half)


def _variance(values: np.ndarray) -> np.ndarray:
    """Return the unbiased variance over the last axis; of equal values exactly 0.

    The rounded mean of equal values may differ from them, which would leave a variance.
    """
    return np.where(np.ptp(values, axis=-1) == 0, 0.0, values.var(axis=-1, ddof=1))


def _half_width(error: float, freedom: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom)) * error if freedom > 0 else nan


def _sample(name: str, values: Values, at_least: int) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    require(
        sample.ndim == 1 and len(sample) >= at_least,
        f"{name} has shape {sample.shape}: give a flat list of at least {at_least}",
    )
    invalid = np.flatnonzero(~np.isfinite(sample))
    if invalid.size:
        at = int(invalid[0])
        raise LRRTError(f"{name}[{at}] is {sample[at]}: leave out tests without a finite value")
    return sample


def _require_same_length(**samples: np.ndarray) -> None:
    (a, first), (b, second) = samples.items()
    require(
        len(first) == len(second),
        f"{a} has {len(first)} values, {b} has {len(second)}: give one of each per test",
    )


def _require_confidence(confidence: float) -> None:
    require(0 < confidence < 1, f"confidence={confidence} is outside (0, 1): try 0.9")
