"""Whether the learning rate in use still fits: two range tests of one task, then and now."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10, nan

from lrrt_stage import Confidence, LRRange
from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from lrrt_stage.settings import Options, setting

__all__ = ["Answer", "CheckOptions", "CheckResult", "still_fits"]


@dataclass(frozen=True)
class CheckOptions(Options):
    """What is checked, and how strictly."""

    lr: float | None = setting(
        None,
        "Learning rate in use; none: the largest that the baseline was trained with.",
        above=0,
    )
    tolerance: float = setting(
        round(CLEAR_DECADES, 2),
        "Decades by which a range may always move, and a learning rate lie outside: what the "
        "interval of one curve does not tell, such as another order of the data.",
        minimum=0,
    )


@dataclass(frozen=True)
class Answer:
    """What a range test came to: its range, and how sure its maximum is."""

    range: LRRange
    confidence: Confidence | None = None

    @property
    def lowest(self) -> float:
        """The lower end of the interval of the maximum, a learning rate."""
        return self.range.max if self.confidence is None else self.confidence.low

    @property
    def highest(self) -> float:
        """The upper end of the interval of the maximum, a learning rate."""
        return self.range.max if self.confidence is None else self.confidence.high


@dataclass(frozen=True)
class CheckResult:
    """What :func:`still_fits` found, with the reason in one line."""

    fits: bool
    reason: str
    moved: float = nan
    """Decades from the baseline's suggested maximum to today's; positive: it went up."""
    allowed: float = nan
    """Decades that it may move by: the uncertainty of both, or the tolerance if that is more."""


def still_fits(baseline: Answer, today: Answer, lr: float, tolerance: float) -> CheckResult:
    """Return whether ``lr`` lies inside today's range, and the range where the baseline's was.

    The range moved if its maximum did by more than the uncertainty of both, which is the sum of the
    parts of their intervals that face each other, and by more than ``tolerance`` decades. ``lr``
    lies outside if it does by more than ``tolerance``, however wide an interval is.
    """
    then, now = baseline.range, today.range
    moved = log10(now.max / then.max)
    facing = (baseline.highest / then.max, now.max / today.lowest)
    if moved < 0:
        facing = (then.max / baseline.lowest, today.highest / now.max)
    allowed = max(tolerance, sum(map(log10, facing)))
    sign = 1 if moved >= 0 else -1
    shift = (
        f"its maximum is {10**moved:.2g} times the baseline's, "
        f"{10 ** (sign * allowed):.2g} times is within the uncertainty"
    )
    factor = 10**tolerance
    if not now.min / factor <= lr <= now.max * factor:
        side = "above" if lr > now.max else "below"
        outside = f"LR {lr:.3g} lies {side} today's range, {_words(now)}"
        return CheckResult(False, f"{outside}; the baseline's was {_words(then)}", moved, allowed)
    fits = abs(moved) <= allowed
    inside = "inside" if now.min <= lr <= now.max else "within the uncertainty of"
    lies = f"LR {lr:.3g} lies {inside} today's range, {_words(now)}"
    return CheckResult(fits, f"{lies}{';' if fits else ', but'} {shift}", moved, allowed)


def _words(lr_range: LRRange) -> str:
    # Not "from 0.01 to 0.1", which cannot be told from a change.
    return f"{lr_range.min:.3g}–{lr_range.max:.3g}"
