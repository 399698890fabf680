"""What a study is: a question, the jobs that answer it, and what they were found to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRange, LRRTError, NoSuggestion
from lrrt_stage.settings import Options, require, setting
from pipeline.jobs.jobs import (
    MAX_TESTS,
    FailedJob,
    Job,
    JobResult,
    RangeTestJob,
    RangeTestResult,
)
from pipeline.task.plan import RangeTestPlan
from pipeline.task.tasks import Task
from pipeline.training.loop import TrainOptions

__all__ = ["KINDS", "Findings", "Study", "StudyOptions", "by_label", "counted", "suggested"]


@dataclass(frozen=True)
class Findings:
    """What a study found, ready to be shown."""

    title: str
    question: str
    sentences: Sequence[str]
    """The answer, a sentence or two each."""
    advice: str
    """What to do about it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers that compare across studies of the kind."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By file name, without its ending."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By heading."""


@dataclass(frozen=True)
class Study:
    """A study in hand: what it is about, and the means to run its jobs.

    ``run`` takes jobs and returns their results in the same order.
    """

    task: Task
    plan: RangeTestPlan
    options: StudyOptions
    training: TrainOptions
    run: Callable[[Sequence[Job]], list[JobResult]]

    def tests(self, default: int, at_least: int = 2) -> int:
        """Return the number of tests, the kind's ``default`` where none was given."""
        count = self.options.tests if self.options.tests is not None else default
        require(
            count >= at_least,
            f"tests={count} is fewer than the {at_least} that kind={self.options.kind} needs: "
            "raise it",
        )
        return count

    def job(self, name: str, labels: Mapping[str, Any], **changes: Any) -> RangeTestJob:
        """Return a range test of the study's task with ``changes`` to it."""
        return RangeTestJob(name, self.task.changed(**changes), self.plan, labels)

    def measure(self, jobs: Sequence[RangeTestJob]) -> list[RangeTestResult]:
        """Run range tests and return the results of those that did not fail, in order."""
        results = self.run(jobs)
        tests = [result for result in results if isinstance(result, RangeTestResult)]
        if not tests:
            reason = next(each.reason for each in results if isinstance(each, FailedJob))
            raise LRRTError(f"all {len(jobs)} range tests failed; the first: {reason}")
        return tests


KINDS: dict[str, Callable[[Study], Findings]] = {}
"""Name of a kind of study -> its function."""


@dataclass(frozen=True)
class StudyOptions(Options):
    """Which study, and how large."""

    kind: str = setting("initializations", "What is studied.", choices=KINDS)
    tests: int | None = setting(
        None,
        "Range tests, or tests per setting, except of smoothing and validation; none: the number "
        "that suits the kind.",
        minimum=1,
        maximum=MAX_TESTS,
    )
    batch_sizes: str = setting("16,32,64,128,256", "Batch sizes of kind batch-size.")
    betas: str = setting("0.9,0.95,0.98,0.99", "Smoothing factors of kind smoothing.")
    workers: int | None = setting(
        None,
        "Tests at a time; none: one per core, or per GPU. Results do not depend on it.",
        minimum=1,
    )
    resume: str | None = setting(
        None,
        "Study that was cut off without notice, to go on with; others are found by themselves.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.tests is None or self.kind not in ("smoothing", "validation"),
            f"tests={self.tests} is of no use, kind={self.kind} has a number of its own: leave it "
            "out",
        )

    def list_of(self, name: str, convert: Callable[[str], Any]) -> list[Any]:
        """Return the comma-separated option ``name`` as values, sorted, each once."""
        text = getattr(self, name)
        try:
            return sorted({convert(part) for part in text.split(",")})
        except ValueError:
            default = getattr(type(self), name)
            raise LRRTError(
                f"{name}={text!r} is not a list of numbers: write them as in {default}"
            ) from None


def suggested(tests: Sequence[RangeTestResult], at_least: int = 1) -> list[LRRange]:
    """Return the ranges of the tests whose rule has one; NoSuggestion if they are too few."""
    found = [test.range for test in tests if test.range is not None]
    if len(found) < at_least:
        reasons = [test.reading.chosen.reason for test in tests if test.range is None]
        raise NoSuggestion(
            f"{len(found)} of {counted(len(tests), 'test')} with a curve gave a suggestion, of "
            f"{at_least} needed: {reasons[0] if reasons else 'raise the number of tests'}"
        )
    return found


def by_label(tests: Sequence[RangeTestResult], label: str) -> dict[Any, list[RangeTestResult]]:
    """Return the tests by the value of a label of their jobs."""
    groups: dict[Any, list[RangeTestResult]] = {}
    for test in tests:
        groups.setdefault(test.job.labels[label], []).append(test)
    return groups


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, an English one whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
