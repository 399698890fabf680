"""A suggestion from several range tests, instead of a single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lrrt_stage import NoSuggestion
from lrrt_stage.rules.consensus import Consensus, find_consensus
from lrrt_stage.rules.reading import Reading
from lrrt_stage.settings import require
from pipeline.decide.options import ConsensusOptions
from pipeline.jobs.jobs import RangeTestJob
from pipeline.ranks.group import current
from pipeline.task.plan import RangeTestPlan
from pipeline.task.tasks import Task

__all__ = ["combined_reading", "further_jobs"]


def combined_reading(
    readings: Sequence[Reading | NoSuggestion], options: ConsensusOptions
) -> Reading:
    """Return the first reading, with the consensus of all tests and a rule that has one.

    The rule of the first reading is kept if the tests agree on a range by it; otherwise the first
    rule by which they do is chosen, if there is one. A single reading has no consensus, and keeps
    its rule under the same condition.

    Parameters
    ----------
    readings
        One per test; the first is not missing. A test that failed is a NoSuggestion.
    """
    first = readings[0]
    assert isinstance(first, Reading)
    by_rule = {
        rule: replace(first, rule=rule, consensus=_consensus(rule, readings, options))
        for rule in first.suggestions
    }
    asked = by_rule[first.rule]
    candidates = (asked, *by_rule.values())
    return next((reading for reading in candidates if reading.final.range is not None), asked)


def _consensus(
    rule: str, readings: Sequence[Reading | NoSuggestion], options: ConsensusOptions
) -> Consensus | NoSuggestion | None:
    if len(readings) == 1:
        return None
    answers = [
        reading if isinstance(reading, NoSuggestion) else reading.suggestions[rule].answer
        for reading in readings
    ]
    try:
        return find_consensus(answers, options.agreement, options.vary)
    except NoSuggestion as reason:
        return reason


def further_jobs(task: Task, plan: RangeTestPlan, options: ConsensusOptions) -> list[RangeTestJob]:
    """Return the tests after the first, which is that of ``task`` itself.

    The next seeds of the task are theirs: the data seed alone, for the same weights in a different
    order of the data, or both seeds, for different weights in a different order.
    """
    if options.tests == 1:
        return []
    require(
        current() is None,
        f"tests={options.tests} run side by side, one process each: use processes=1, or tests=1",
    )
    require(
        not task.initial.startswith("run:"),
        f"init={task.init!r} with tests={options.tests}: further tests draw their own weights: "
        "download the weights of the run and use init=file:PATH",
    )
    initializations = options.vary == "initializations"
    require(
        not (initializations and task.initial.startswith("file:")),
        f"vary=initializations compares the weights of several seeds, but init={task.init!r} "
        "gives the same weights to all: use an initialiser, or vary=data-order",
    )
    jobs = []
    for index in range(1, options.tests):
        seed = task.seed + index if initializations else task.seed
        name = f"seed {seed}" if initializations else f"order {index}"
        varied = replace(task, seed=seed, data_seed=task.data_seed + index)
        jobs.append(RangeTestJob(name, varied, plan))
    return jobs
