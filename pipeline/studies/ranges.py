"""Many suggested ranges: their spread, and how far each pair of them overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log10

import numpy as np

from lrrt_stage import LRRange, LRRTError
from lrrt_stage.settings import require

__all__ = [
    "RangeSummary",
    "farthest_pair",
    "gap",
    "overlap",
    "overlaps",
    "share_disjoint",
    "summarize",
]


@dataclass(frozen=True)
class RangeSummary:
    """Median, 10 % and 90 % quantile of the two ends of ``count`` ranges, in units of LR.

    ``max_iqr_decades`` is the distance of the quartiles of log10(max), in decades: half of the
    tests lie within a factor of ``10 ** max_iqr_decades``.
    """

    count: int
    min_median: float
    min_q10: float
    min_q90: float
    max_median: float
    max_q10: float
    max_q90: float
    max_iqr_decades: float


def summarize(ranges: Sequence[LRRange]) -> RangeSummary:
    """Return the quantiles of the ranges' ends.

    The 10 %, 50 % and 90 % quantiles are those of the learning rates themselves, as in the
    article's published code, not of their logarithms; the quartiles are of the logarithms. All
    are interpolated linearly (Hyndman & Fan 1996, type 7).

    Raises
    ------
    LRRTError
        If there is no range.
    """
    require(len(ranges) > 0, "there are no ranges to summarise: run at least one range test")
    lows, highs = [each.min for each in ranges], [each.max for each in ranges]
    min_q10, min_median, min_q90 = np.quantile(lows, [0.1, 0.5, 0.9]).tolist()
    max_q10, max_median, max_q90 = np.quantile(highs, [0.1, 0.5, 0.9]).tolist()
    q25, q75 = np.quantile(np.log10(highs), [0.25, 0.75]).tolist()
    return RangeSummary(
        count=len(ranges),
        min_median=min_median,
        min_q10=min_q10,
        min_q90=min_q90,
        max_median=max_median,
        max_q10=max_q10,
        max_q90=max_q90,
        max_iqr_decades=q75 - q25,
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
    matrix = np.eye(len(ranges))
    for i, j in combinations(range(len(ranges)), 2):
        matrix[i, j] = matrix[j, i] = overlap(ranges[i], ranges[j])
    return matrix


def share_disjoint(ranges: Sequence[LRRange]) -> float:
    """Return the share of the ``k (k - 1) / 2`` pairs whose :func:`overlap` is 0.

    Raises
    ------
    LRRTError
        If there are fewer than two ranges.
    """
    _require_pair(ranges)
    pairs = list(combinations(ranges, 2))
    return sum(overlap(a, b) == 0 for a, b in pairs) / len(pairs)


def gap(a: LRRange, b: LRRange) -> float:
    """Return the decades between two ranges: from the lower one's max to the higher one's min.

    0 where they overlap or touch.
    """
    return max(0.0, log10(max(a.min, b.min)) - log10(min(a.max, b.max)))


def farthest_pair(ranges: Sequence[LRRange]) -> tuple[int, int]:
    """Return the indices ``(i, j)``, i < j, of the two ranges that differ most.

    They are the pair with the widest :func:`gap`. Where no pair has a gap, and among pairs with
    the same, the one whose log10(max) are farthest apart is taken, then whose log10(min) are,
    then the first.

    Raises
    ------
    LRRTError
        If there are fewer than two ranges, or all of them are equal.
    """
    _require_pair(ranges)

    def distances(pair: tuple[int, int]) -> tuple[float, float, float]:
        a, b = ranges[pair[0]], ranges[pair[1]]
        decades = gap(a, b), abs(log10(a.max / b.max)), abs(log10(a.min / b.min))
        # Rounded, so that the last bit of a logarithm breaks no tie.
        return round(decades[0], 9), round(decades[1], 9), round(decades[2], 9)

    farthest = max(combinations(range(len(ranges)), 2), key=distances)
    if not any(distances(farthest)):
        raise LRRTError(
            f"all {len(ranges)} ranges are {ranges[0]}: no two differ, so raise the number of "
            "tests or the iterations of each"
        )
    return farthest


def _require_pair(ranges: Sequence[LRRange]) -> None:
    require(
        len(ranges) >= 2,
        f"a pair of ranges is needed, there are {len(ranges)}: run at least 2 range tests",
    )
