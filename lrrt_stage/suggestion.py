"""From a curve to the range of learning rates to train with.

A rule is one function from a curve and a smoothing to an :class:`LRRange`, put into :data:`RULES`
by ``@rule("name")``; nothing else has to know about it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, log, log10, sqrt

import numpy as np

from lrrt_stage.curve import LRCurve
from lrrt_stage.errors import NoSuggestion, unknown_name
from lrrt_stage.settings import check_choices, require, setting
from lrrt_stage.smoothing import Smoothing

__all__ = [
    "RULES",
    "SKIP_FIRST",
    "SKIP_LAST",
    "LRRange",
    "SuggestionOptions",
    "descent",
    "require_turn",
    "rule",
    "suggest",
    "suggest_all",
]

DECADE = 10.0
"""A rule that names one learning rate suggests the decade below it: a one-cycle starts at a tenth
to a third of its peak (Smith 2018, arXiv 1803.09820)."""


@dataclass(frozen=True)
class LRRange:
    """Learning rates from ``min`` to ``max``, 0 < min < max."""

    min: float
    max: float

    def __post_init__(self) -> None:
        require(
            0 < self.min < self.max and isfinite(self.max),
            f"range ({self.min:g}, {self.max:g}) is not 0 < min < max: swap or widen it",
        )

    @property
    def decades(self) -> float:
        """Width on the log10 axis."""
        return log10(self.max / self.min)

    @classmethod
    def below(cls, lr: float) -> LRRange:
        """The decade that ends at ``lr``."""
        return cls(lr / DECADE, lr)

    def __str__(self) -> str:
        return f"{self.min:.3g} to {self.max:.3g}"


Rule = Callable[[LRCurve, Smoothing], LRRange]
RULES: dict[str, Rule] = {}
"""Name of a rule -> the rule."""


@dataclass(frozen=True)
class SuggestionOptions:
    """Which rule's answer is chosen. Every rule is computed and recorded at every test."""

    rule: str = setting("article", "Rule whose range is handed to training.", choices=RULES)

    def __post_init__(self) -> None:
        check_choices(self)


def suggest(curve: LRCurve, rule: str = "article", smoothing: Smoothing | None = None) -> LRRange:
    """Return the range that ``rule`` reads from ``curve``.

    Raises
    ------
    NoSuggestion
        If the curve has no answer for this rule; the message says why and what to do.
    LRRTError
        If there is no such rule.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    return RULES[rule](curve, smoothing or Smoothing())


def suggest_all(
    curve: LRCurve, smoothing: Smoothing | None = None
) -> dict[str, LRRange | NoSuggestion]:
    """Return every rule's answer, or why it has none."""
    answers: dict[str, LRRange | NoSuggestion] = {}
    for name in RULES:
        try:
            answers[name] = suggest(curve, name, smoothing)
        except NoSuggestion as reason:
            answers[name] = reason
    return answers


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule ``name``."""

    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register


@rule("article")
def article(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """Minimum: the steepest descent; maximum: a tenth of the LR of the smoothed minimum.

    S. Maggio, *The Learning Rate Black Magic* (2020), and its published code: the maximum is the
    tested LR nearest to that tenth; the steepest point is looked for between the start of the
    last uninterrupted descent and the minimum; where there is none, or it lies above a tenth of
    the maximum, the minimum is a tenth of the maximum.
    """
    lr, smoothed, lowest = descent(curve, smoothing)
    require_turn(curve, lr, lowest)
    maximum = _nearest(lr, lr[lowest] / 10)
    slope = np.gradient(smoothed, np.log10(lr))[:lowest]
    rising = np.flatnonzero(slope >= 0)
    start = rising[-1] + 1 if rising.size else 0
    if start < lowest:
        minimum = float(lr[start + int(np.argmin(slope[start:]))])
        if minimum <= maximum / 10:
            return LRRange(minimum, maximum)
    return LRRange.below(maximum)


@rule("steepest")
def steepest(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The LR at which the smoothed loss falls fastest per decade, before its minimum.

    Smith 2015; the suggestion of torch-lr-finder, Lightning and Ignite, and fastai's ``steep``.
    """
    lr, smoothed, lowest = descent(curve, smoothing)
    slope = np.gradient(smoothed, np.log10(lr))[: lowest + 1]
    return LRRange.below(float(lr[int(np.argmin(slope))]))


@rule("minimum")
def minimum(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """A tenth of the LR at the minimum of the smoothed loss (fastai's ``minimum``)."""
    lr, _, lowest = descent(curve, smoothing)
    require_turn(curve, lr, lowest)
    return LRRange.below(float(lr[lowest]) / 10)


@rule("valley")
def valley(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """Half way along the longest descent (fastai's ``valley``, its default since 2.3).

    The longest strictly decreasing subsequence of the smoothed losses has L elements and ends at
    index e; the suggestion is the LR at a third plus a sixth of the way from e - L to e. The
    first tenth of the curve and its last five points are left out.
    """
    descent(curve, smoothing)
    lr, smoothed = _fastai_window(curve, smoothing)
    length, end = _longest_decrease(smoothed)
    third = length / 3
    return LRRange.below(float(lr[end - length + int(third) + int(third / 2)]))


@rule("slide")
def slide(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The interval slide rule (novetta/ESRI, as in fastai's ``slide``).

    An interval of 15 iterations slides down from the end of the curve until the slopes at its
    two ends differ by no more than 0.005 per iteration; the suggestion is the LR of its lower
    end just before. The same points are left out as for ``valley``.
    """
    width, threshold = 15, 0.005
    descent(curve, smoothing)
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
    return LRRange.below(float(suggestion))


SKIP_FIRST, SKIP_LAST = 5, 1
"""Points of the curve that the article's published code leaves out."""
MIN_POINTS = 10


def descent(curve: LRCurve, smoothing: Smoothing) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the LRs and smoothed losses that count, and the index of the minimum among them.

    The arrays have shape ``[m]``: the finite part of the curve without its first
    :data:`SKIP_FIRST` and its last :data:`SKIP_LAST` points.

    Raises NoSuggestion for too few points, or a loss that never fell: from no earlier point by
    more than noise alone would explain. Of N pairs of points, the largest difference to be
    expected is sqrt(2 ln N) standard errors (Donoho & Johnstone's universal threshold, 1994).
    """
    finite = curve.finite
    ended, remedy = "", "raise lr_end"
    if len(finite) < len(curve):
        at = len(finite)
        ended = f", until one was {curve.loss[at]:g} at the LR {curve.lr[at]:g}"
        remedy = "lower lr_start"
    if len(finite) < MIN_POINTS:
        raise NoSuggestion(
            f"too few points: {len(finite)} finite losses{ended}, {MIN_POINTS} are needed: "
            f"{'check data and loss, ' if ended else ''}lower lr_start or raise iterations"
        )
    window = slice(SKIP_FIRST, -SKIP_LAST)
    lr, smoothed = finite.lr[window], smoothing(finite.loss)[window]
    # The biased average starts near 0, so its own minimum may be its start: the descent is what
    # comes after its highest point before the minimum of the corrected one.
    steady = Smoothing("corrected", smoothing.beta)(finite.loss)[window]
    highest = int(np.argmax(smoothed[: int(np.argmin(steady)) + 1]))
    lowest = highest + int(np.argmin(smoothed[highest:]))
    error = _standard_error(finite.loss, lowest + SKIP_FIRST, smoothing.beta)[window]
    falls = smoothed[: lowest + 1] - smoothed[lowest]
    expected = sqrt(2 * log(len(lr) * (len(lr) - 1) / 2))
    if not (falls > expected * np.hypot(error[: lowest + 1], error[lowest])).any():
        raise NoSuggestion(
            f"the loss never fell: {smoothed[highest]:.4g} to {smoothed[lowest]:.4g} at best, "
            f"within the noise of the batches{ended}: check data and loss, or {remedy}"
        )
    return lr, smoothed, lowest


def _standard_error(loss: np.ndarray, until: int, beta: float) -> np.ndarray:
    """Return the standard error of the bias-corrected average at every point.

    The noise of a batch is estimated from the differences between neighbours, up to the index
    ``until`` (for normal noise σ their median magnitude is 0.6745 √2 σ). The average of t batches
    with weights β^0 … β^(t-1) has the variance σ² (1 - β)(1 + β^t) / ((1 + β)(1 - β^t)).
    """
    noise = float(np.median(np.abs(np.diff(loss[: until + 1])))) / (0.6745 * sqrt(2))
    decay = beta ** np.arange(1, len(loss) + 1)
    return noise * np.sqrt((1 - beta) * (1 + decay) / ((1 + beta) * (1 - decay)))


def require_turn(curve: LRCurve, lr: np.ndarray, lowest: int) -> None:
    """Raise NoSuggestion if the loss was still falling when the ramp ended."""
    if lowest == len(lr) - 1 and curve.stop == "completed":
        raise NoSuggestion(
            f"the loss is still falling at the last LR {curve.lr[-1]:g}: raise lr_end"
        )


def _fastai_window(curve: LRCurve, smoothing: Smoothing) -> tuple[np.ndarray, np.ndarray]:
    finite = curve.finite
    window = slice(len(finite) // 10, -5)
    return finite.lr[window], smoothing(finite.loss)[window]


def _longest_decrease(values: np.ndarray) -> tuple[int, int]:
    """Return the length of the longest strictly decreasing subsequence and its earliest end."""
    tails: list[float] = []  # tails[k]: the largest last value of a decrease of k + 1, negated
    longest, end = 0, 0
    for index, value in enumerate(values):
        place = bisect_left(tails, -value)
        tails[place : place + 1] = [-value]
        if place + 1 > longest:
            longest, end = place + 1, index
    return longest, end


def _nearest(lr: np.ndarray, target: float) -> float:
    return float(lr[int(np.argmin(np.abs(lr - target)))])
