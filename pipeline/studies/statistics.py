"""What many suggested ranges say: their spread, their overlap, and what moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10, nan

import numpy as np
import pandas as pd
from scipy import stats

from lrrt_stage import LRRange

__all__ = ["Estimate", "best_covered", "coverage", "order_share", "overlap", "quantiles", "slope"]

RESAMPLES = 2000
"""Bootstrap samples; enough for an interval's ends to be steady to about a percent."""
CONFIDENCE = 0.9


def quantiles(ranges: Sequence[LRRange]) -> pd.DataFrame:
    """Return ``q10``, ``median`` and ``q90`` of the rows ``min`` and ``max`` of ranges.

    They are those of the learning rates, as in the article's published code, not of the logarithms.
    """
    table = pd.DataFrame(list(ranges)).quantile([0.1, 0.5, 0.9]).T
    return table.set_axis(["q10", "median", "q90"], axis=1)


def best_covered(ranges: Sequence[LRRange]) -> tuple[float, int]:
    """Return the learning rate inside the most ranges, the largest such one, and their number."""

    def inside(lr: float) -> int:
        # The last digits of a learning rate depend on the machine.
        return sum(r.min * (1 - 1e-9) <= lr <= r.max * (1 + 1e-9) for r in ranges)

    maximum = max((lr_range.max for lr_range in ranges), key=lambda lr: (inside(lr), lr))
    return maximum, inside(maximum)


def coverage(
    ranges: Sequence[LRRange], tests: int, noun: str = "tests"
) -> tuple[dict[str, float], str]:
    """Return :func:`best_covered` of ``tests`` tests as metrics and as a sentence, if any."""
    if not ranges:
        return {}, ""
    maximum, inside = best_covered(ranges)
    metrics = {"covered_max": maximum, "covered_tests": inside, "covered_share": inside / tests}
    without = tests - len(ranges)
    return metrics, (
        f"A maximum of {maximum:.3g} is inside the suggested range of {inside} of {tests} {noun}; "
        "no learning rate is inside more, and no higher one inside as many."
        + (f" {without} of them gave no suggestion." if without else "")
    )


def overlap(a: LRRange, b: LRRange) -> float:
    """Return the intersection of two ranges over their union, on the log axis: 0 to 1."""
    low, high = max(a.min, b.min), min(a.max, b.max)
    if low >= high:
        return 0.0
    return log10(high / low) / log10(max(a.max, b.max) / min(a.min, b.min))


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 90 % interval, NaN where there is none."""

    value: float
    low: float = nan
    high: float = nan


def order_share(varied: list[float], order_only: list[float], seed: int = 0) -> Estimate:
    """Return the share of the data order in the variance of values, beside the initialisation's.

    ``varied`` are values of tests that differ in both, ``order_only`` those of tests on the same
    weights. A value is taken to be ``μ + initialisation + order``, the two effects independent and
    additive. The order's effect is measured at one initialisation: the share means what it says
    only if it is as large at the others. Without any variance of ``varied``, it is NaN.

    The interval is the percentile bootstrap of both samples (Efron & Tibshirani 1993, ch. 13),
    without the resamples of ``varied`` that have no spread. With 20 tests of each kind it is wide,
    and misses the truth somewhat more often than it says.
    """
    both, order = np.array(varied), np.array(order_only)
    total = float(_variance(both))
    if total == 0:
        return Estimate(nan)
    rng = np.random.default_rng(seed)
    totals = _variance(rng.choice(both, (RESAMPLES, len(both))))
    orders = _variance(rng.choice(order, (RESAMPLES, len(order))))
    shares = np.minimum(1.0, orders[totals > 0] / totals[totals > 0])
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Estimate(min(1.0, float(_variance(order)) / total), low, high)


def slope(batch_sizes: list[float], lrs: list[float]) -> Estimate:
    """Fit the exponent p of ``lr ∝ batch_size^p`` by least squares on log axes.

    Linear scaling is 1 (Goyal et al. 2017, arXiv 1706.02677), square root scaling 0.5
    (Krizhevsky 2014, arXiv 1404.5997). At least two batch sizes must differ.
    """
    fit = stats.linregress(np.log10(batch_sizes), np.log10(lrs))
    # SciPy has no standard error for suggestions that are all equal, and no t for two points.
    error = np.nan_to_num(fit.stderr)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(lrs) - 2) * error)
    return Estimate(float(fit.slope), float(fit.slope - half), float(fit.slope + half))


def _variance(values: np.ndarray) -> np.ndarray:
    """Return the unbiased variance over the last axis; of equal values exactly 0.

    The rounded mean of equal values may differ from them, which would leave a variance.
    """
    return np.where(np.ptp(values, axis=-1) == 0, 0.0, values.var(axis=-1, ddof=1))
