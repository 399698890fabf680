"""One range from several tests: hand-worked numbers."""

import math

import pytest

from lrrt_stage import LRRange, LRRTError, NoSuggestion, Verdict
from lrrt_stage.charts import Mark, Span
from pipeline import RangeTestPlan, Task
from pipeline.decide.several_tests import (
    Consensus,
    ConsensusOptions,
    consensus,
    consensus_all,
    further_jobs,
)
from pipeline.training.plots import consensus_items

FIVE = [
    LRRange(0.001, 0.10),
    LRRange(0.002, 0.20),
    LRRange(0.004, 0.05),
    LRRange(0.003, 0.40),
    LRRange(0.005, 0.30),
]
NONE = NoSuggestion("the loss never fell")


def agreed(answers, agreement=1.0):
    return consensus(answers, ConsensusOptions(tests=len(answers), agreement=agreement))


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        # All: the least maximum, the largest minimum.
        (1.0, LRRange(0.005, 0.05)),
        # Four of five: 0.10 is at or below 0.10, 0.20, 0.40 and 0.30; 0.004 is at or above four.
        (0.8, LRRange(0.004, 0.10)),
        # More than three fifths are four.
        (0.61, LRRange(0.004, 0.10)),
        (0.6, LRRange(0.003, 0.20)),
        # One is enough: the largest maximum, the least minimum.
        (0.01, LRRange(0.001, 0.40)),
    ],
)
def test_the_share_of_five_tests_that_must_agree_decides_both_ends(agreement, expected):
    assert agreed(FIVE, agreement).range == expected
    assert agreed(FIVE[::-1], agreement).range == expected


def test_a_single_test_agrees_with_itself():
    found = consensus([FIVE[0]])
    assert found.range == FIVE[0]
    assert (found.decades, found.without_suggestion, found.overlap) == (0, 0, True)
    with pytest.raises(NoSuggestion) as caught:
        consensus([NONE])
    assert caught.value is NONE


def test_a_share_that_is_a_whole_number_of_tests_is_not_rounded_up():
    # In floating point, 0.07 * 100 is 7.000000000000001.
    assert ConsensusOptions(agreement=0.07).needed(100) == 7
    assert ConsensusOptions(agreement=0.7).needed(10) == 7
    assert ConsensusOptions(agreement=0.8).needed(5) == 4
    assert ConsensusOptions(agreement=1e-12).needed(5) == 1


def test_most_must_agree():
    assert [ConsensusOptions().needed(tests) for tests in range(1, 8)] == [1, 2, 2, 3, 3, 4, 5]
    # Of three, and of five, that is the median.
    assert consensus(FIVE).range.max == 0.20


def test_ranges_without_a_common_rate_leave_the_decade_below_the_least_maximum():
    found = agreed([LRRange(0.001, 0.01), LRRange(0.02, 0.2)])
    assert found.range == LRRange(0.001, 0.01)
    assert not found.overlap
    assert found.decades == pytest.approx(math.log10(20))
    assert "no learning rate is in all of their ranges" in str(found)


def test_ranges_that_share_an_end_alone_do_not_overlap():
    found = agreed([LRRange(0.001, 0.01), LRRange(0.01, 0.1)])
    assert not found.overlap
    assert found.range == LRRange(0.001, 0.01)
    assert agreed([LRRange(0.001, 0.01), LRRange(0.009, 0.1)]).range == LRRange(0.009, 0.01)


def test_tests_without_an_answer_do_not_agree():
    # Three of five are needed. Of the three with an answer, all have to agree.
    found = agreed([NONE, *FIVE[:3], NONE], 0.6)
    assert found.range == LRRange(0.004, 0.05)
    assert found.ranges == (None, *FIVE[:3], None)
    assert found.without_suggestion == 2
    assert found.overlap
    assert "2 of them gave no suggestion" in str(found)
    with pytest.raises(NoSuggestion, match="3 of 5 tests gave a suggestion, 4 are needed") as why:
        agreed([NONE, *FIVE[:3], NONE], 0.8)
    assert str(NONE) in str(why.value)
    assert why.value.verdict is Verdict.NO_DESCENT


def test_maxima_more_than_a_factor_of_two_apart_are_uncertain():
    near, far = (agreed([LRRange(0.001, 0.1), LRRange(0.001, high)]) for high in (0.19, 0.21))
    clear, noisy = (each.confidence(Verdict.CLEAR) for each in (near, far))
    assert (clear.verdict, noisy.verdict) == (Verdict.CLEAR, Verdict.APART)
    assert (noisy.low, noisy.high) == (0.1, 0.21)
    assert noisy.decades == far.decades == pytest.approx(math.log10(2.1))
    assert "the suggestion is uncertain" in str(far)
    assert "uncertain" not in str(near)
    # Tests that agree outweigh the noise of the first curve, but not that its ramp was too short.
    assert near.confidence(Verdict.NOISY).verdict is Verdict.CLEAR
    assert near.confidence(Verdict.STILL_FALLING).verdict is Verdict.STILL_FALLING


def test_a_sentence_says_what_is_safe_for_whom():
    assert str(agreed(FIVE, 0.8)) == (
        "0.004 to 0.1, safe for at least 4 of 5 tests that differ in the order of the data; their "
        "maxima lie between 0.05 and 0.4, 0.9 decades apart, more than a factor of two: the "
        "suggestion is uncertain"
    )
    options = ConsensusOptions(tests=2, vary="initializations")
    text = str(consensus([FIVE[0]] * 2, options))
    assert "safe for all 2 tests that differ in initial weights and data order" in text


def test_every_rule_has_a_consensus_of_its_own():
    tests = [{"robust": FIVE[0], "valley": NONE}, {"robust": FIVE[1], "valley": FIVE[1]}]
    found = consensus_all(tests)
    assert isinstance(found["robust"], Consensus)
    assert found["robust"].range == LRRange(0.002, 0.1)
    assert isinstance(found["valley"], NoSuggestion)


def test_the_picture_shows_the_consensus_and_the_maxima_of_the_others():
    span, *marks = consensus_items(agreed([FIVE[0], NONE, FIVE[1]], 0.5))
    assert isinstance(span, Span)
    assert (span.low, span.high) == (0.002, 0.1)
    assert "consensus of 3 tests" in span.name
    assert [mark.x for mark in marks] == [0.2]
    assert isinstance(marks[0], Mark)


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
    several, plan = ConsensusOptions(tests=2), RangeTestPlan()
    varied = ConsensusOptions(tests=2, vary="initializations")
    assert len(further_jobs(Task(init="file:w.safetensors"), plan, several)) == 1
    with pytest.raises(LRRTError, match="gives the same to all"):
        further_jobs(Task(init="file:w.safetensors"), plan, varied)
    with pytest.raises(LRRTError, match="init=file:PATH"):
        further_jobs(Task(init="run:abc"), plan, several)
    assert further_jobs(Task(init="run:abc"), plan, ConsensusOptions()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tests": 0}, "tests=0 must be"),
        ({"agreement": 0.0}, "agreement=0.0 must be"),
        ({"agreement": 1.5}, "agreement=1.5 must be"),
        ({"agreement": math.nan}, "agreement=nan must be"),
        ({"vary": "data-orders"}, "did you mean 'data-order'"),
        ({"workers": 0}, "workers=0 must be"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(LRRTError, match=message):
        ConsensusOptions(**options)


def test_tests_without_a_suggestion_leave_the_consensus_uncertain():
    answers = [LRRange(0.01, 0.1)] + [NoSuggestion("no")] * 4
    agreed = consensus(answers, ConsensusOptions(tests=5, agreement=0.2))
    assert agreed.confidence(Verdict.CLEAR).verdict is Verdict.APART
