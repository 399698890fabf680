"""What a study is: a question, the jobs that answer it, and what they were found to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRange, LRRTError, NoSuggestion
from lrrt_stage.settings import require
from pipeline.jobs.jobs import FailedJob, Job, JobResult, RangeTestJob, RangeTestResult
from pipeline.studies.options import KINDS, StudyOptions
from pipeline.task.plan import RangeTestPlan
from pipeline.task.tasks import Task
from pipeline.training.options import TrainOptions

__all__ = ["Findings", "Study", "by_label", "counted", "suggested"]


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

    def findings(self) -> Findings:
        """Carry the study out."""
        function: Callable[[Study], Findings] = resolve_name(KINDS[self.options.kind])
        return function(self)

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
