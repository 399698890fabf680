"""One range from several range tests: the learning rates that are safe for most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log10

from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.errors import NoSuggestion, Verdict
from lrrt_stage.rules.uncertainty import CLEAR_DECADES, Confidence

__all__ = ["Consensus", "find_consensus", "tests_needed"]


@dataclass(frozen=True)
class Consensus:
    """The range that several tests agree on, and how far apart their suggestions are."""

    range: LRRange
    ranges: tuple[LRRange | None, ...]
    """Suggestion of every test; None where it has none. At least one test has a suggestion."""
    agreement: float
    """Share of the tests for which the range has to be safe, above 0 and up to 1."""
    vary: str = ""
    """What the tests differ in."""

    @property
    def low(self) -> float:
        """The smallest suggested maximum, a learning rate."""
        return min(suggested.max for suggested in self._suggested)

    @property
    def high(self) -> float:
        """The largest suggested maximum, a learning rate."""
        return max(suggested.max for suggested in self._suggested)

    @property
    def decades(self) -> float:
        """Distance between ``low`` and ``high`` on the log10 axis."""
        return log10(self.high / self.low)

    @property
    def without_suggestion(self) -> int:
        """Number of tests without a suggestion."""
        return self.ranges.count(None)

    @property
    def overlap(self) -> bool:
        """Whether some learning rate lies inside every suggested range."""
        return max(suggested.min for suggested in self._suggested) < self.low

    def confidence(self, first: Verdict) -> Confidence:
        """Return the interval from ``low`` to ``high``, and its verdict.

        It is unclear if the maxima are more than a factor of two apart, or a test has no
        suggestion. ``first`` is the verdict on the first test: if its loss is still falling at
        the last learning rate, or its ramp is unusual, more tests do not help.
        """
        differ = self.decades > CLEAR_DECADES or self.without_suggestion > 0
        verdict = Verdict.APART if differ else Verdict.CLEAR
        if first is Verdict.STILL_FALLING or (first is Verdict.RAMP and not differ):
            verdict = first
        return Confidence(self.low, self.high, verdict)

    def __str__(self) -> str:
        tests, needed = len(self.ranges), tests_needed(self.agreement, len(self.ranges))
        safe_for = (
            f"all {tests} tests" if needed == tests else f"at least {needed} of {tests} tests"
        )
        parts = [
            f"{self.range}, safe for {safe_for}",
            f"their maxima lie between {self.low:.3g} and {self.high:.3g} "
            f"({self.decades:.2g} decades)",
        ]
        if self.without_suggestion:
            parts.append(f"{self.without_suggestion} of them have no suggestion")
        if not self.overlap:
            parts.append("no learning rate is inside all of their ranges")
        return "; ".join(parts)

    @property
    def _suggested(self) -> list[LRRange]:
        return [suggested for suggested in self.ranges if suggested is not None]


def tests_needed(agreement: float, tests: int) -> int:
    """Return how many of ``tests`` have to agree for a share of ``agreement``."""
    # 0.07 * 100 is above 7 in floating point.
    return max(1, ceil(agreement * tests - 1e-9))


def find_consensus(
    suggestions: Sequence[LRRange | NoSuggestion], agreement: float = 0.6, vary: str = ""
) -> Consensus:
    """Return the range that is safe for a share of the tests, given the suggestion of each.

    Its maximum is the largest learning rate that does not exceed the suggested maximum of that
    many tests; its minimum is the smallest that is not below the suggested minimum of that many.
    Where this minimum is not below the maximum, the range is the decade below the maximum. A test
    without a suggestion agrees with nothing.

    Parameters
    ----------
    suggestions
        One per test, at least one.
    agreement
        Share of the tests, above 0 and up to 1.
    vary
        What the tests differ in, for the record.

    Raises
    ------
    NoSuggestion
        If fewer tests than needed have a suggestion.

    References
    ----------
    S. Maggio, *The Learning Rate Black Magic* (2020), Fig 7: the suggested ranges of two
    initialisations need not overlap.
    """
    needed = tests_needed(agreement, len(suggestions))
    found = [suggested for suggested in suggestions if isinstance(suggested, LRRange)]
    reasons = [reason for reason in suggestions if isinstance(reason, NoSuggestion)]
    if len(found) < needed:
        raise NoSuggestion(
            f"{len(found)} of {len(suggestions)} tests have a suggestion, {needed} are needed for "
            f"agreement={agreement:g}; the first without: {reasons[0]}",
            reasons[0].verdict,
        )
    maximum = sorted((suggested.max for suggested in found), reverse=True)[needed - 1]
    minimum = sorted(suggested.min for suggested in found)[needed - 1]
    safe = LRRange(minimum, maximum) if minimum < maximum else LRRange.decade_below(maximum)
    ranges = tuple(None if isinstance(test, NoSuggestion) else test for test in suggestions)
    return Consensus(safe, ranges, agreement, vary)
