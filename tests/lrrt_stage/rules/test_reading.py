from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from lrrt_stage import (
    RULES,
    LRCurve,
    LRRange,
    LRRTError,
    NoSuggestion,
    Reading,
    Smoothing,
    Suggestion,
    Verdict,
    confidence,
    find_consensus,
    suggest_all,
)

# Ten iterations a decade: flat, then a descent, which has not ended at the last learning rate.
FALLING = LRCurve(10 ** (-6 + np.arange(30) / 10), [4.0] * 20 + [4.0 - i / 4 for i in range(10)])
SMOOTHING = Smoothing(beta=0.5)


@pytest.fixture(scope="module")
def reading():
    return Reading.from_curve(FALLING, "valley", SMOOTHING)


def test_it_has_the_suggestion_and_the_confidence_of_every_rule(reading):
    assert list(reading.suggestions) == list(RULES)
    answers = suggest_all(FALLING, SMOOTHING)
    assert reading.suggestions["valley"].range == answers["valley"]
    assert reading.suggestions["valley"].confidence == confidence(FALLING, "valley", SMOOTHING)
    assert reading.suggestions["valley"].reason == ""
    assert (reading.curve, reading.smoothing) == (FALLING, SMOOTHING)


def test_a_rule_without_a_suggestion_has_the_reason_instead(reading):
    missing = reading.suggestions["robust"]
    assert missing.range is None
    assert "raise lr_end" in missing.reason
    assert missing.confidence.verdict is Verdict.STILL_FALLING
    assert isnan(missing.confidence.low)


def test_training_uses_the_chosen_rule_of_a_single_test(reading):
    assert reading.final is reading.chosen is reading.suggestions["valley"]
    other = replace(reading, rule="robust")
    assert other.final is other.chosen is reading.suggestions["robust"]


def test_training_uses_the_consensus_of_several_tests(reading):
    consensus = find_consensus([LRRange(0.001, 0.01), LRRange(0.001, 0.1)], agreement=1.0)
    several = Reading(reading.curve, reading.suggestions, "valley", SMOOTHING, consensus)
    assert several.final.range == LRRange(0.001, 0.01)
    assert (several.final.confidence.low, several.final.confidence.high) == (0.01, 0.1)
    assert several.chosen is reading.chosen


def test_without_a_consensus_there_is_no_suggestion(reading):
    none = NoSuggestion("one of three tests", Verdict.APART)
    final = Reading(reading.curve, reading.suggestions, "valley", SMOOTHING, none).final
    assert final.range is None
    assert final.reason == "one of three tests"
    assert final.confidence.verdict is Verdict.APART
    assert final.answer == Suggestion.missing(none).answer


def test_an_unknown_rule_is_refused():
    with pytest.raises(LRRTError, match="valley"):
        Reading.from_curve(FALLING, "valey")
