"""Options, jobs, and the combined reading of several tests."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrrt_stage import (
    Confidence,
    Consensus,
    LRCurve,
    LRRange,
    LRRTError,
    NoSuggestion,
    Reading,
    Smoothing,
    Suggestion,
    Verdict,
)
from pipeline import RangeTestPlan, Task
from pipeline.decide.options import ConsensusOptions
from pipeline.decide.several_tests import combined_reading, further_jobs

NONE = NoSuggestion("the loss never fell")
CURVE = LRCurve(np.geomspace(0.1, 1, 10), np.ones(10))


def reading(rule: str = "robust", **maxima: float | None) -> Reading:
    """A reading whose rules suggest the decades below these maxima, or have no suggestion."""
    suggestions = {}
    for name, maximum in maxima.items():
        answer = NONE if maximum is None else LRRange.decade_below(maximum)
        suggestions[name] = Suggestion(answer, Confidence(0.1, 0.2, Verdict.CLEAR))
    return Reading(CURVE, suggestions, rule, Smoothing())


TWO = ConsensusOptions(tests=2)


def test_the_consensus_is_that_of_the_chosen_rule():
    first, second = reading(robust=0.1, valley=5.0), reading(robust=0.2, valley=5.0)
    combined = combined_reading([first, second], TWO)
    assert (combined.rule, combined.curve) == ("robust", first.curve)
    assert isinstance(combined.consensus, Consensus)
    assert combined.final.range == LRRange(0.02, 0.1)
    assert combined.consensus.ranges == (first.chosen.range, second.chosen.range)
    assert combined.consensus.vary == "data-order"


def test_another_rule_is_chosen_if_the_tests_agree_only_by_that_one():
    first, second = reading(robust=None, valley=0.3), reading(robust=0.2, valley=0.3)
    combined = combined_reading([first, second], TWO)
    assert combined.rule == "valley"
    assert combined.final.range == LRRange.decade_below(0.3)


def test_without_any_agreement_the_rule_stays_and_the_reason_is_kept():
    combined = combined_reading([reading(robust=0.1, valley=0.3), NONE], TWO)
    assert combined.rule == "robust"
    assert isinstance(combined.consensus, NoSuggestion)
    assert "2 are needed" in combined.final.reason


def test_a_test_that_failed_does_not_agree():
    three = ConsensusOptions(tests=3)
    combined = combined_reading([reading(robust=0.1), NONE, reading(robust=0.1)], three)
    assert isinstance(combined.consensus, Consensus)
    assert combined.consensus.without_suggestion == 1


def test_a_single_reading_has_no_consensus_and_a_rule_with_a_suggestion():
    first = reading(robust=0.1, valley=0.3)
    assert combined_reading([first], ConsensusOptions()) == first
    found = combined_reading([reading(robust=None, valley=0.3)], ConsensusOptions())
    assert (found.rule, found.consensus) == ("valley", None)
    assert combined_reading([reading(robust=None)], ConsensusOptions()).rule == "robust"


def test_further_tests_have_the_seeds_of_the_studies():
    task, plan = Task(seed=3, data_seed=7), RangeTestPlan()

    def seeds(**options):
        jobs = further_jobs(task, plan, ConsensusOptions(**options))
        assert all(job.plan is plan for job in jobs)
        return [(job.name, job.task.seed, job.task.data_seed) for job in jobs]

    assert seeds() == []
    assert seeds(tests=3) == [("order 1", 3, 8), ("order 2", 3, 9)]
    varied = seeds(tests=3, vary="initializations")
    assert varied == [("seed 4", 4, 8), ("seed 5", 5, 9)]


def test_weights_that_further_tests_cannot_make_are_refused():
    plan = RangeTestPlan()
    varied = ConsensusOptions(tests=2, vary="initializations")
    assert len(further_jobs(Task(init="file:w.safetensors"), plan, TWO)) == 1
    with pytest.raises(LRRTError, match="init='file:w.safetensors'"):
        further_jobs(Task(init="file:w.safetensors"), plan, varied)
    with pytest.raises(LRRTError, match="init=file:PATH"):
        further_jobs(Task(init="run:abc"), plan, TWO)
    assert further_jobs(Task(init="run:abc"), plan, ConsensusOptions()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tests": 0}, "tests=0"),
        ({"agreement": 0.0}, "agreement=0.0"),
        ({"agreement": 1.5}, "agreement=1.5"),
        ({"agreement": math.nan}, "agreement=nan"),
        ({"vary": "data-orders"}, "'data-order'"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, words):
    with pytest.raises(LRRTError, match=words):
        ConsensusOptions(**options)
