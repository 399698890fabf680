"""Every rule on whatever a range test may measure."""

import pytest
from hypothesis import given

from lrrt_stage import RULES, LRCurve, NoSuggestion, Reading, suggest
from tests.strategies import curves, result_or_refusal


@pytest.mark.parametrize("rule", RULES)
@given(curve=curves())
def test_a_suggested_maximum_was_tested_or_there_is_a_reason(rule, curve):
    found = result_or_refusal(suggest, curve, rule)
    if not isinstance(found, NoSuggestion):
        # Between two learning rates of the ramp, for a rule that takes a mean.
        assert curve.lr[0] * (1 - 1e-12) <= found.max <= curve.lr[-1] * (1 + 1e-12)
        assert found.min <= found.max / 10 * (1 + 1e-12)


@given(curves())
def test_any_curve_can_be_read(curve):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrrt_stage.rules.uncertainty.RESAMPLES", 3)
        reading = Reading.from_curve(curve)
    assert list(reading.suggestions) == list(RULES)
    for found in reading.suggestions.values():
        if found.range is not None:
            assert found.confidence.low <= found.range.max <= found.confidence.high


@pytest.mark.parametrize("rule", RULES)
def test_losses_whose_squares_are_not_finite_are_no_descent(rule):
    # A model in double precision reaches them, and the sum of squares would overflow.
    lr = [10.0**exponent for exponent in range(-10, 2)]
    exploded = [1e200] * 6 + [0.0] * 6
    with pytest.raises(NoSuggestion):
        suggest(LRCurve(lr, exploded), rule)
    with pytest.raises(NoSuggestion):
        suggest(LRCurve(lr, [0.0] * 12, probe_loss=exploded), rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_test_that_ended_before_its_first_loss_is_too_short(rule):
    with pytest.raises(NoSuggestion, match="too few points: 0"):
        suggest(LRCurve([], [], stop="diverged"), rule)
