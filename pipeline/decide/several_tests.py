"""One range from several tests: the learning rates that are safe for all or most of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log10

from lrrt_stage import Confidence, LRRange, NoSuggestion, Verdict
from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from lrrt_stage.settings import Options, require, setting
from pipeline.jobs.jobs import RangeTestJob
from pipeline.task.plan import RangeTestPlan
from pipeline.task.tasks import Task

__all__ = [
    "Consensus",
    "ConsensusOptions",
    "consensus",
    "consensus_all",
    "further_jobs",
    "settled",
]

VARIED = {
    "data-order": "the order of the data",
    "initializations": "initial weights and data order",
}
"""What the tests differ in -> that in words."""


@dataclass(frozen=True)
class ConsensusOptions(Options):
    """How many tests a suggestion is the consensus of, and how many of them must agree."""

    tests: int = setting(
        1,
        "Range tests; above 1, the suggested range is the one that is safe for most of them.",
        minimum=1,
    )
    vary: str = setting(
        "data-order",
        "What the tests differ in: the order of the data, on the same weights, or both.",
        choices=VARIED,
    )
    agreement: float = setting(
        0.6,
        "Share of the tests for which the range must be safe: 0.6 for most, 1 for all.",
        above=0,
        maximum=1,
    )
    workers: int | None = setting(
        None,
        "Tests at a time, after the first; none: one per core, or per GPU. Results do not depend "
        "on it.",
        minimum=1,
    )

    def needed(self, tests: int) -> int:
        """Return how many of ``tests`` must agree."""
        # 0.07 * 100 is above 7 in floating point.
        return max(1, ceil(self.agreement * tests - 1e-9))


@dataclass(frozen=True)
class Consensus:
    """What several tests agree on, and how far they are apart."""

    range: LRRange
    ranges: tuple[LRRange | None, ...]
    """What each test suggests, None where it has no suggestion; at least one does."""
    options: ConsensusOptions

    @property
    def low(self) -> float:
        """The least of the suggested maxima, a learning rate."""
        return min(each.max for each in self._suggested)

    @property
    def high(self) -> float:
        """The largest of the suggested maxima, a learning rate."""
        return max(each.max for each in self._suggested)

    @property
    def decades(self) -> float:
        """Distance of these two on the log10 axis."""
        return log10(self.high / self.low)

    @property
    def without_suggestion(self) -> int:
        """Number of tests that have no suggestion."""
        return self.ranges.count(None)

    @property
    def overlap(self) -> bool:
        """Whether some learning rate lies inside every suggested range."""
        return max(each.min for each in self._suggested) < self.low

    def confidence(self, first: Verdict) -> Confidence:
        """Return the interval from the least to the largest maximum, and the verdict on it.

        Maxima more than a factor of two apart are uncertain, and so is what a test does not answer.
        ``first`` is the verdict on the first test's curve alone: where that one still falls at the
        last learning rate, no number of tests mends it.
        """
        if first is Verdict.STILL_FALLING:
            return Confidence(self.low, self.high, first)
        apart = self.decades > CLEAR_DECADES or self.without_suggestion > 0
        verdict = Verdict.APART if apart else Verdict.CLEAR
        return Confidence(self.low, self.high, verdict)

    def __str__(self) -> str:
        count = len(self.ranges)
        needed = self.options.needed(count)
        share = f"all {count}" if needed == count else f"at least {needed} of {count}"
        parts = [
            f"{self.range}, safe for {share} tests that differ in {VARIED[self.options.vary]}",
            f"their maxima lie between {self.low:.3g} and {self.high:.3g}, {self.decades:.2g} "
            "decades apart",
        ]
        if self.decades > CLEAR_DECADES:
            parts[-1] += ", more than a factor of two: the suggestion is uncertain"
        if self.without_suggestion:
            parts.append(f"{self.without_suggestion} of them gave no suggestion")
        if not self.overlap:
            parts.append("no learning rate is in all of their ranges")
        return "; ".join(parts)

    @property
    def _suggested(self) -> list[LRRange]:
        return [each for each in self.ranges if each is not None]


Answer = LRRange | NoSuggestion


def consensus(answers: Sequence[Answer], options: ConsensusOptions | None = None) -> Consensus:
    """Return the range that is safe for the needed share of the tests, given one answer of each.

    Its maximum is the largest learning rate that is at or below the suggested maximum of that
    many tests; with a share of 1, the least maximum. Its minimum is the least learning rate that
    is at or above the suggested minimum of that many; where that is not below the maximum, the
    range is the decade below the maximum. A test without a suggestion agrees with nothing.

    Raises
    ------
    NoSuggestion
        If fewer tests than needed have a suggestion; of a single test, its own reason.

    References
    ----------
    S. Maggio, *The Learning Rate Black Magic* (2020), Fig 7: the suggested ranges of two
    initialisations need not overlap.
    """
    options = options or ConsensusOptions()
    needed = options.needed(len(answers))
    found = [each for each in answers if isinstance(each, LRRange)]
    reasons = [each for each in answers if isinstance(each, NoSuggestion)]
    if len(found) < needed:
        if len(answers) == 1:
            raise reasons[0]
        raise NoSuggestion(
            f"{len(found)} of {len(answers)} tests gave a suggestion, {needed} are needed for "
            f"agreement={options.agreement:g}; the first without: {reasons[0]}",
            reasons[0].verdict,
        )
    highest = sorted((each.max for each in found), reverse=True)[needed - 1]
    lowest = sorted(each.min for each in found)[needed - 1]
    agreed = LRRange(lowest, highest) if lowest < highest else LRRange.decade_below(highest)
    ranges = tuple(each if isinstance(each, LRRange) else None for each in answers)
    return Consensus(agreed, ranges, options)


def settled(
    answer: Answer, how_sure: Confidence, agreed: Consensus | NoSuggestion | None
) -> tuple[Answer, Confidence]:
    """Return what is handed on, and how far to trust it.

    That is a single test's ``answer``, ``how_sure`` of it; of several tests, whose first it is,
    what they ``agreed`` on.
    """
    if agreed is None:
        return answer, how_sure
    if isinstance(agreed, NoSuggestion):
        return agreed, Confidence(float("nan"), float("nan"), agreed.verdict)
    return agreed.range, agreed.confidence(how_sure.verdict)


def consensus_all(
    tests: Sequence[Mapping[str, Answer]], options: ConsensusOptions | None = None
) -> dict[str, Consensus | NoSuggestion]:
    """Return every rule's consensus, or why it has none, given every rule's answer per test."""
    agreed: dict[str, Consensus | NoSuggestion] = {}
    for rule in tests[0]:
        try:
            agreed[rule] = consensus([answers[rule] for answers in tests], options)
        except NoSuggestion as reason:
            agreed[rule] = reason
    return agreed


def further_jobs(task: Task, plan: RangeTestPlan, options: ConsensusOptions) -> list[RangeTestJob]:
    """Return the tests after the first, which is that of ``task`` itself.

    They have the seeds of the studies ``data-order`` and ``initializations``: the same weights in
    another order of the data, or other weights in another order.

    Raises
    ------
    LRRTError
        If the tests cannot make their weights themselves, or all would make the same.
    """
    further = range(1, options.tests)
    if not further:
        return []
    require(
        not task.init.startswith("run:"),
        f"init={task.init!r} with tests={options.tests}: further tests make their weights "
        "themselves: download the run's weights and give init=file:PATH",
    )
    if options.vary == "data-order":
        return [
            RangeTestJob(f"order {index}", replace(task, data_seed=task.data_seed + index), plan)
            for index in further
        ]
    require(
        not task.init.startswith("file:"),
        f"vary=initializations compares weights of several seeds, but init={task.init!r} gives "
        "the same to all: use an initialiser, or vary=data-order",
    )
    return [
        RangeTestJob(
            f"seed {task.seed + index}",
            replace(task, seed=task.seed + index, data_seed=task.data_seed + index),
            plan,
        )
        for index in further
    ]
