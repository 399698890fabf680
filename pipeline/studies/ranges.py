"""Many suggested ranges: their spread, their overlap, and the maximum that suits most of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log10

import numpy as np
import pandas as pd

from lrrt_stage import LRRange, LRRTError

__all__ = ["best_covered", "coverage", "farthest_pair", "gap", "overlap", "overlaps", "quantiles"]


def quantiles(ranges: Sequence[LRRange]) -> pd.DataFrame:
    """Return ``q10``, ``median`` and ``q90`` of the rows ``min`` and ``max`` of ranges.

    The quantiles are those of the learning rates themselves, as in the article's published code,
    not of their logarithms, interpolated linearly (Hyndman & Fan 1996, type 7).
    """
    ends = pd.DataFrame([(lr_range.min, lr_range.max) for lr_range in ranges])
    table = ends.quantile([0.1, 0.5, 0.9]).T
    return table.set_axis(["min", "max"]).set_axis(["q10", "median", "q90"], axis=1)


def best_covered(ranges: Sequence[LRRange]) -> tuple[float, int]:
    """Return the learning rate inside the most ranges, the largest such one, and their number.

    This is always one of the maxima. Unlike the median of the maxima, it lies inside as many
    ranges as any learning rate can, and unlike the smallest maximum, a single low range does not
    decide.
    """

    def inside(lr: float) -> int:
        # The last digits of a learning rate depend on the machine.
        return sum(r.min * (1 - 1e-9) <= lr <= r.max * (1 + 1e-9) for r in ranges)

    maximum = max((lr_range.max for lr_range in ranges), key=lambda lr: (inside(lr), lr))
    return maximum, inside(maximum)


def coverage(
    ranges: Sequence[LRRange], tests: int, noun: str = "tests"
) -> tuple[dict[str, float], str]:
    """Return what :func:`best_covered` found among ``tests`` as metrics and as a sentence."""
    maximum, inside = best_covered(ranges)
    metrics = {"covered_max": maximum, "covered_tests": inside, "covered_share": inside / tests}
    without = tests - len(ranges)
    return metrics, (
        f"A maximum of {maximum:.3g} is inside the suggested range of {inside} of {tests} {noun}; "
        "no learning rate is inside more, and no higher one inside as many."
        + (f" {without} of them gave no suggestion." if without else "")
    )


def overlap(a: LRRange, b: LRRange) -> float:
    """Return the intersection of two ranges over their union, on the log axis: 0 to 1.

    The Jaccard index of the two intervals of log10(lr). Equal ranges have 1; ranges that share
    no learning rate, or only an end, have 0.
    """
    low, high = max(a.min, b.min), min(a.max, b.max)
    if low >= high:
        return 0.0
    return log10(high / low) / log10(max(a.max, b.max) / min(a.min, b.min))


def overlaps(ranges: Sequence[LRRange]) -> np.ndarray:
    """Return the overlap of every pair, shape ``[k, k]``: symmetric, 1 on the diagonal."""
    return np.array([[overlap(a, b) for b in ranges] for a in ranges])


def gap(a: LRRange, b: LRRange) -> float:
    """Return the decades between two ranges: from the lower one's max to the higher one's min.

    0 where they overlap or touch.
    """
    return max(0.0, log10(max(a.min, b.min)) - log10(min(a.max, b.max)))


def farthest_pair(ranges: Sequence[LRRange]) -> tuple[int, int]:
    """Return the indices ``(i, j)``, i < j, of the two ranges that differ most.

    They are the pair with the widest :func:`gap`. Where no pair has a gap, and among pairs with
    the same, the pair is taken whose log10(max) are farthest apart, then whose log10(min) are,
    then the first.

    Raises
    ------
    LRRTError
        If all ranges are equal.
    """

    def distances(pair: tuple[int, int]) -> tuple[float, ...]:
        a, b = ranges[pair[0]], ranges[pair[1]]
        decades = gap(a, b), abs(log10(a.max / b.max)), abs(log10(a.min / b.min))
        # Rounded, so that the last bit of a logarithm breaks no tie.
        return tuple(round(distance, 9) for distance in decades)

    farthest = max(combinations(range(len(ranges)), 2), key=distances)
    if not any(distances(farthest)):
        raise LRRTError(
            f"all {len(ranges)} ranges are {ranges[0]}: no two differ, so raise the number of "
            "tests or the iterations of each"
        )
    return farthest
