"""One range from several tests: hand-worked numbers."""

import math

import pytest

from lrrt_stage import LRRange, NoSuggestion, Verdict, find_consensus
from lrrt_stage.rules.consensus import tests_needed as needed

FIVE = [
    LRRange(0.001, 0.10),
    LRRange(0.002, 0.20),
    LRRange(0.004, 0.05),
    LRRange(0.003, 0.40),
    LRRange(0.005, 0.30),
]
NONE = NoSuggestion("the loss never fell")


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        # All: the smallest maximum, the largest minimum.
        (1.0, LRRange(0.005, 0.05)),
        # Four of five: 0.10 is at or below 0.10, 0.20, 0.40 and 0.30; 0.004 is at or above four.
        (0.8, LRRange(0.004, 0.10)),
        # More than three fifths are four.
        (0.61, LRRange(0.004, 0.10)),
        (0.6, LRRange(0.003, 0.20)),
        # One is enough: the largest maximum, the smallest minimum.
        (0.01, LRRange(0.001, 0.40)),
    ],
)
def test_the_share_of_five_tests_that_must_agree_decides_both_ends(agreement, expected):
    assert find_consensus(FIVE, agreement).range == expected
    assert find_consensus(FIVE[::-1], agreement).range == expected


def test_a_single_test_agrees_with_itself():
    found = find_consensus([FIVE[0]])
    assert found.range == FIVE[0]
    assert (found.decades, found.without_suggestion, found.overlap) == (0, 0, True)
    with pytest.raises(NoSuggestion, match=str(NONE)):
        find_consensus([NONE])


def test_a_share_that_is_a_whole_number_of_tests_is_not_rounded_up():
    # In floating point, 0.07 * 100 is 7.000000000000001.
    assert needed(0.07, 100) == 7
    assert needed(0.7, 10) == 7
    assert needed(0.8, 5) == 4
    assert needed(1e-12, 5) == 1


def test_by_default_most_must_agree():
    assert [needed(0.6, tests) for tests in range(1, 8)] == [1, 2, 2, 3, 3, 4, 5]
    # Of three, and of five, that is the median.
    assert find_consensus(FIVE).range.max == 0.20


def test_ranges_without_a_common_rate_leave_the_decade_below_the_smallest_maximum():
    found = find_consensus([LRRange(0.001, 0.01), LRRange(0.02, 0.2)], 1.0)
    assert found.range == LRRange(0.001, 0.01)
    assert not found.overlap
    assert found.decades == pytest.approx(math.log10(20))
    assert "no learning rate" in str(found)


def test_ranges_that_share_only_an_end_do_not_overlap():
    found = find_consensus([LRRange(0.001, 0.01), LRRange(0.01, 0.1)], 1.0)
    assert not found.overlap
    assert found.range == LRRange(0.001, 0.01)
    overlapping = [LRRange(0.001, 0.01), LRRange(0.009, 0.1)]
    assert find_consensus(overlapping, 1.0).range == LRRange(0.009, 0.01)


def test_tests_without_a_suggestion_do_not_agree():
    tests = [NONE, *FIVE[:3], NONE]
    # Three of five are needed: all of those with a suggestion have to agree.
    found = find_consensus(tests, 0.6)
    assert found.range == LRRange(0.004, 0.05)
    assert found.ranges == (None, *FIVE[:3], None)
    assert found.without_suggestion == 2
    assert found.overlap
    assert found.confidence(Verdict.CLEAR).verdict is Verdict.APART
    with pytest.raises(NoSuggestion, match="3 of 5 .* 4 are needed") as caught:
        find_consensus(tests, 0.8)
    assert str(NONE) in str(caught.value)
    assert caught.value.verdict is Verdict.NO_DESCENT


def test_maxima_more_than_a_factor_of_two_apart_are_uncertain():
    near, far = (
        find_consensus([LRRange(0.001, 0.1), LRRange(0.001, high)], 1.0) for high in (0.19, 0.21)
    )
    assert near.confidence(Verdict.CLEAR).verdict is Verdict.CLEAR
    uncertain = far.confidence(Verdict.CLEAR)
    assert (uncertain.low, uncertain.high, uncertain.verdict) == (0.1, 0.21, Verdict.APART)
    assert uncertain.decades == far.decades == pytest.approx(math.log10(2.1))


def test_tests_that_agree_outweigh_a_noisy_first_curve_but_not_a_short_ramp():
    agreeing = find_consensus([LRRange(0.001, 0.1)] * 2)
    assert agreeing.confidence(Verdict.NOISY).verdict is Verdict.CLEAR
    assert agreeing.confidence(Verdict.STILL_FALLING).verdict is Verdict.STILL_FALLING


@pytest.mark.parametrize(("agreement", "words"), [(0.8, "at least 4 of 5"), (1.0, "all 5")])
def test_its_text_says_for_how_many_tests_the_range_is_safe(agreement, words):
    found = find_consensus(FIVE, agreement)
    assert words in str(found)
    assert str(found.range) in str(found)
    assert "between 0.05 and 0.4 (0.9 decades)" in str(found)
