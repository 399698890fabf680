"""Whether a learning rate still fits: a range test of the past compared with one of today."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10, nan

from lrrt_stage import LRRange, Suggestion

__all__ = ["CheckResult", "still_fits"]


@dataclass(frozen=True)
class CheckResult:
    """Result of :func:`still_fits`, with the reason in one line."""

    fits: bool
    reason: str
    moved: float = nan
    """Decades from the baseline's suggested maximum to today's; positive if it went up."""
    allowed: float = nan
    """Decades that it may move by: the uncertainty of both tests, but at least the tolerance."""


def still_fits(baseline: Suggestion, today: Suggestion, lr: float, tolerance: float) -> CheckResult:
    """Return whether ``lr`` lies inside today's range, and this range has not moved.

    The range has moved if its maximum differs from the baseline's by more than the uncertainty of
    both, which is the sum of the parts of their intervals that face each other, and by more than
    ``tolerance`` decades. ``lr`` lies outside if it does so by more than ``tolerance``, however
    wide an interval is. Without a suggestion today, nothing fits.
    """
    then, now = baseline.range, today.range
    if now is None:
        return CheckResult(False, f"today's range test has no suggestion: {today.reason}")
    assert then is not None
    moved = log10(now.max / then.max)
    ends = [(then.max, baseline.confidence), (now.max, today.confidence)]
    (lower, below), (upper, above) = sorted(ends, key=lambda end: end[0])
    allowed = max(tolerance, log10(below.high / lower) + log10(upper / above.low))
    factor = 10**tolerance
    if not now.min / factor <= lr <= now.max * factor:
        side = "above" if lr > now.max else "below"
        outside = f"LR {lr:.3g} lies {side} today's range {_dashed(now)}"
        return CheckResult(False, f"{outside}; the baseline's was {_dashed(then)}", moved, allowed)
    fits = abs(moved) <= allowed
    inside = "inside" if now.min <= lr <= now.max else "within the uncertainty of"
    limit = 10 ** (allowed if moved >= 0 else -allowed)
    reason = (
        f"LR {lr:.3g} lies {inside} today's range {_dashed(now)}{';' if fits else ', but'} the "
        f"range's maximum is {10**moved:.2g} times the baseline's, {limit:.2g} times is within the "
        "uncertainty"
    )
    return CheckResult(fits, reason, moved, allowed)


def _dashed(lr_range: LRRange) -> str:
    # Not "0.01 to 0.1", which could be mistaken for a change.
    return f"{lr_range.min:.3g}–{lr_range.max:.3g}"
