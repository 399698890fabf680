"""Whether a learning rate still fits: hand-worked numbers."""

import math

import pytest

from lrrt_stage import Confidence, LRRange, NoSuggestion, Suggestion, Verdict
from pipeline.decide.fit_check import still_fits


def suggestion(low, high, least=None, most=None):
    """A range, and the interval of its maximum, which is a point if it is not given."""
    return Suggestion(LRRange(low, high), Confidence(least or high, most or high, Verdict.CLEAR))


THEN = suggestion(0.01, 0.1)


def test_the_same_range_fits():
    found = still_fits(THEN, THEN, lr=0.05, tolerance=0.0)
    assert found.fits
    assert (found.moved, found.allowed) == (0, 0)
    assert "LR 0.05 lies inside" in found.reason


@pytest.mark.parametrize(
    ("lr", "today", "side"),
    [
        (0.1001, THEN, "above"),
        (0.0099, THEN, "below"),
        # However wide the interval of the maximum is.
        (0.13, suggestion(0.01, 0.1, 0.001, 10.0), "above"),
    ],
)
def test_a_learning_rate_outside_todays_range_does_not(lr, today, side):
    found = still_fits(THEN, today, lr, tolerance=0.0)
    assert not found.fits
    assert side in found.reason


@pytest.mark.parametrize(
    ("lr", "fits"), [(0.19, True), (0.21, False), (0.0051, True), (0.0049, False)]
)
def test_it_may_lie_outside_by_the_tolerance(lr, fits):
    found = still_fits(THEN, THEN, lr, tolerance=math.log10(2))
    assert found.fits == fits
    assert ("within the uncertainty" in found.reason) == fits


@pytest.mark.parametrize(
    ("then", "now", "allowed"),
    [
        # It went up: from the upper part of the earlier interval to the lower part of today's.
        (suggestion(0.001, 0.1, 0.01, 0.2), suggestion(0.001, 0.3, 0.15, 3.0), math.log10(2 * 2)),
        # It went down: the other two parts.
        (suggestion(0.001, 0.3, 0.1, 9.0), suggestion(0.001, 0.1, 0.01, 0.2), math.log10(3 * 2)),
        (THEN, suggestion(0.01, 0.3), 0.0),
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
    now = suggestion(0.01, 0.15)
    assert not still_fits(THEN, now, lr=0.05, tolerance=0.17).fits
    assert still_fits(THEN, now, lr=0.05, tolerance=0.18).fits


def test_a_range_that_moved_up_does_not_fit_though_the_learning_rate_lies_inside():
    found = still_fits(THEN, suggestion(0.01, 1.0), lr=0.05, tolerance=0.3)
    assert not found.fits
    assert "10 times" in found.reason
    assert "2 times" in found.reason


def test_without_a_suggestion_today_nothing_fits():
    today = Suggestion.missing(NoSuggestion("the loss never fell"))
    found = still_fits(THEN, today, lr=0.05, tolerance=9.0)
    assert not found.fits
    assert "the loss never fell" in found.reason
    assert math.isnan(found.moved)
