"""The rule of the article, and those of other LR finders, which read the smoothed loss."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion
from lrrt_stage.rules.descent import decade_below, find_descent, require_turn
from lrrt_stage.rules.registry import rule

__all__ = ["article", "minimum", "slide", "steepest", "valley"]


@rule("article", pace_decades=0.62, start_decades=0.26)
def article(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The maximum is a tenth of the learning rate at which the smoothed training loss is lowest;
    the minimum is where that loss falls most steeply, or a tenth of the maximum (S. Maggio 2020).

    S. Maggio, *The Learning Rate Black Magic* (2020), and its published code. The maximum is the
    tested LR nearest to that tenth. The steepest point is that of the last uninterrupted descent
    before the minimum; if there is none, or it is above a tenth of the maximum, the range starts
    at a tenth of the maximum.
    """
    lr, smoothed, lowest = find_descent(curve, smoothing)
    require_turn(curve, lr, lowest)
    maximum = float(lr[np.argmin(np.abs(lr - lr[lowest] / 10))])
    slope = np.gradient(smoothed, np.log10(lr))[:lowest]
    rising = np.flatnonzero(slope >= 0)
    start = rising[-1] + 1 if rising.size else 0
    if start < lowest:
        minimum = float(lr[start + np.argmin(slope[start:])])
        if minimum <= maximum / 10:
            return LRRange(minimum, maximum)
    return LRRange.decade_below(maximum)


@rule("steepest", pace_decades=1.87, start_decades=0.51)
def steepest(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The LR at which the smoothed loss falls fastest per decade, before its minimum.

    Smith 2015; the suggestion of torch-lr-finder, Lightning and Ignite, and fastai's ``steep``.
    """
    lr, smoothed, lowest = find_descent(curve, smoothing)
    slope = np.gradient(smoothed, np.log10(lr))[: lowest + 1]
    return LRRange.decade_below(float(lr[np.argmin(slope)]))


@rule("minimum", pace_decades=0.62, start_decades=0.26)
def minimum(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """A tenth of the LR at the minimum of the smoothed loss (fastai's ``minimum``)."""
    lr, _, lowest = find_descent(curve, smoothing)
    require_turn(curve, lr, lowest)
    return decade_below(curve, float(lr[lowest]) / 10)


@rule("valley", pace_decades=0.37, start_decades=0.31)
def valley(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The LR half way along the longest descent (fastai's ``valley``, its default since 2.3).

    If the longest strictly decreasing subsequence of the smoothed losses has L elements and ends
    at index e, the suggestion is the LR at a third plus a sixth of the way from e - L to e. The
    first tenth of the curve and its last five points are left out.
    """
    find_descent(curve, smoothing)
    lr, smoothed = _fastai_window(curve, smoothing)
    length, end = _longest_decrease(smoothed)
    third = length / 3
    return LRRange.decade_below(float(lr[end - length + int(third) + int(third / 2)]))


@rule("slide", pace_decades=2.09, start_decades=0.78)
def slide(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The interval slide rule (novetta/ESRI, as in fastai's ``slide``).

    An interval of 15 iterations slides down from the end of the curve until the slopes at its
    two ends differ by at most 0.005 per iteration; the suggestion is the LR of its lower end one
    iteration earlier. The same points are left out as for ``valley``.
    """
    width, threshold = 15, 0.005
    find_descent(curve, smoothing)
    lr, smoothed = _fastai_window(curve, smoothing)
    if len(lr) <= width:
        raise NoSuggestion(
            f"slide needs more than {width} points, the curve has {len(lr)}: raise iterations"
        )
    slope = np.gradient(smoothed)
    low = len(lr) - 1 - width
    suggestion = lr[low]
    while low >= 0 and abs(slope[low + width] - slope[low]) > threshold:
        suggestion = lr[low]
        low -= 1
    return LRRange.decade_below(float(suggestion))


def _fastai_window(curve: LRCurve, smoothing: Smoothing) -> tuple[np.ndarray, np.ndarray]:
    finite = curve.finite
    window = slice(len(finite) // 10, -5)
    return finite.lr[window], smoothing(finite.loss)[window]


def _longest_decrease(values: np.ndarray) -> tuple[int, int]:
    """Return the length of the longest strictly decreasing subsequence and its earliest end."""
    tails: list[float] = []  # tails[k]: minus the largest last value of a decrease of k + 1
    longest, end = 0, 0
    for index, negated in enumerate((-values).tolist()):
        place = bisect_left(tails, negated)
        tails[place : place + 1] = [negated]
        if place + 1 > longest:
            longest, end = place + 1, index
    return longest, end
