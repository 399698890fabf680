"""A ramp that the rules were not measured with moves the suggestion, and the verdict says so."""

from math import log10

import numpy as np
import pytest

from lrrt_stage import (
    RULES,
    LRCurve,
    LRRange,
    RangeTestOptions,
    Verdict,
    confidence,
    find_consensus,
    rule,
    suggest,
)
from lrrt_stage.rules.uncertainty import ramp_movement

MEASURED = {"robust": (0.33, 0.18)}


def curve(iterations=100, lr_start=1e-7, lr_end=100.0):
    options = RangeTestOptions(iterations=iterations, lr_start=lr_start, lr_end=lr_end)
    lr = options.learning_rates([], 1)
    decades = np.log10(lr)
    # A clean descent that turns at 0.1.
    loss = np.where(decades < -1, 2 - np.clip(decades + 4, 0, 3) / 2, 0.5 + 3 * (decades + 1))
    return LRCurve(lr, np.minimum(loss, 4.0), stop="diverged")


@pytest.mark.parametrize("lr_end", [10.0, 100.0, 1000.0])
def test_the_default_ramp_does_not_move_the_suggestion(lr_end):
    assert ramp_movement(curve(lr_end=lr_end)) == 0
    assert confidence(curve(lr_end=lr_end)).verdict is Verdict.CLEAR


@pytest.mark.parametrize(("iterations", "decades"), [(1000, 1.0), (316, 0.5), (30, 0.52)])
def test_more_or_fewer_iterations_move_it_by_the_measured_share_of_their_logarithm(
    iterations, decades
):
    expected = MEASURED["robust"][0] * abs(log10((iterations - 1) / 99))
    assert ramp_movement(curve(iterations)) == pytest.approx(expected)
    assert expected == pytest.approx(MEASURED["robust"][0] * decades, abs=0.02)
    assert confidence(curve(iterations)).verdict is Verdict.RAMP


def test_a_different_first_learning_rate_moves_it():
    assert ramp_movement(curve(78, lr_start=1e-5)) == MEASURED["robust"][1]
    assert confidence(curve(78, lr_start=1e-5)).verdict is Verdict.RAMP


def test_the_interval_is_that_of_reading_the_curve():
    usual, unusual = confidence(curve()), confidence(curve(1000))
    assert unusual.decades < 2 * usual.decades + 0.05


def test_nothing_is_known_of_a_rule_that_was_not_measured(monkeypatch):
    monkeypatch.setitem(RULES, "of my own", RULES["robust"])

    @rule("of my own")
    def of_my_own(curve, smoothing):
        return LRRange(0.1, 0.2)

    assert ramp_movement(curve(1000), "of my own") == 0


def test_a_curve_whose_learning_rate_does_not_grow_is_not_judged():
    assert ramp_movement(LRCurve(np.full(30, 0.1), np.ones(30))) == 0


def test_several_tests_do_not_mend_an_unusual_ramp():
    suggestion = suggest(curve(1000))
    consensus = find_consensus([suggestion] * 3)
    assert consensus.confidence(Verdict.RAMP).verdict is Verdict.RAMP
    assert consensus.confidence(Verdict.NOISY).verdict is Verdict.CLEAR
