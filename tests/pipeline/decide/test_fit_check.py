"""Whether a learning rate still fits: hand-worked numbers."""

import math

import pytest

from lrrt_stage import Confidence, LRRange, LRRTError, Verdict
from pipeline.decide.fit_check import Answer, CheckOptions, still_fits


def answer(low, high, least=None, most=None):
    sure = None if least is None else Confidence(least, most, Verdict.CLEAR)
    return Answer(LRRange(low, high), sure)


THEN = answer(0.01, 0.1)


def test_the_same_range_fits():
    found = still_fits(THEN, THEN, lr=0.05, tolerance=0.0)
    assert found.fits
    assert (found.moved, found.allowed) == (0, 0)
    assert "LR 0.05 lies inside today's range, 0.01–0.1" in found.reason


@pytest.mark.parametrize(
    ("lr", "today", "side"),
    [
        (0.1001, THEN, "above"),
        (0.0099, THEN, "below"),
        # However wide the interval of the maximum is.
        (0.13, answer(0.01, 0.1, 0.001, 10.0), "above"),
    ],
)
def test_a_learning_rate_outside_todays_range_does_not(lr, today, side):
    found = still_fits(THEN, today, lr, tolerance=0.0)
    assert not found.fits
    assert f"lies {side} today's range" in found.reason


@pytest.mark.parametrize(
    ("lr", "fits"), [(0.19, True), (0.21, False), (0.0051, True), (0.0049, False)]
)
def test_it_may_lie_outside_by_the_tolerance(lr, fits):
    found = still_fits(THEN, THEN, lr, tolerance=math.log10(2))
    assert found.fits == fits
    assert ("within the uncertainty of today's range" in found.reason) == fits


@pytest.mark.parametrize(
    ("then", "now", "allowed"),
    [
        # It went up: from the upper part of the earlier interval to the lower part of today's.
        (answer(0.001, 0.1, 0.01, 0.2), answer(0.001, 0.3, 0.15, 3.0), math.log10(2 * 2)),
        # It went down: the other two parts.
        (answer(0.001, 0.3, 0.1, 9.0), answer(0.001, 0.1, 0.01, 0.2), math.log10(3 * 2)),
        (THEN, answer(0.01, 0.3), 0.0),
    ],
)
def test_the_uncertainty_of_both_is_the_parts_of_the_intervals_that_face_each_other(
    then, now, allowed
):
    found = still_fits(then, now, lr=0.05, tolerance=0.0)
    assert found.allowed == pytest.approx(allowed)
    assert found.moved == pytest.approx(math.log10(now.range.max / then.range.max))
    assert found.fits == (abs(found.moved) <= allowed)


def test_the_tolerance_is_allowed_in_any_case():
    now = answer(0.01, 0.15)
    assert not still_fits(THEN, now, lr=0.05, tolerance=0.17).fits
    assert still_fits(THEN, now, lr=0.05, tolerance=0.18).fits


def test_a_range_that_moved_up_does_not_fit_though_the_learning_rate_lies_inside():
    found = still_fits(THEN, answer(0.01, 1.0), lr=0.05, tolerance=0.3)
    assert not found.fits
    assert "LR 0.05 lies inside today's range, 0.01–1, but its maximum is 10 times" in found.reason
    assert "2 times is within the uncertainty" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr=0.0 must be"),
        ({"lr": math.inf}, r"lr=inf must be"),
        ({"tolerance": -0.1}, r"tolerance=-0.1 must be"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(LRRTError, match=message):
        CheckOptions(**options)
