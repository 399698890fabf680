from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import LRRange, LRRTError
from pipeline.training.narrowing import POLICIES, Narrowing
from tests.strategies import ranges


def test_top_takes_its_share_of_the_decades_off_the_maximum():
    # Two decades; half of them leaves 10^-2 to 10^-1.
    narrowed = Narrowing("top", 0.5)(LRRange(0.01, 1.0))

    assert narrowed.min == 0.01
    assert narrowed.max == pytest.approx(0.1, rel=1e-12)


def test_both_takes_half_of_its_share_off_each_end():
    # Four decades; a half is two, one at each end.
    narrowed = Narrowing("both", 0.5)(LRRange(1e-4, 1.0))

    assert narrowed.min == pytest.approx(1e-3, rel=1e-12)
    assert narrowed.max == pytest.approx(0.1, rel=1e-12)


def test_none_keeps_the_range():
    suggested = LRRange(0.0123, 0.987)
    assert Narrowing("none", 0.5)(suggested) == suggested


def test_nothing_is_left_out_by_default():
    suggested = LRRange(0.0123, 0.987)
    assert Narrowing()(suggested) == suggested


def test_both_ends_alone_are_refused(complains):
    with complains("narrowing='both'", "narrowing_fraction"):
        Narrowing("both")


def test_a_share_alone_comes_off_the_top():
    # Ten decades, of which nine are left.
    narrowed = Narrowing(narrowing_fraction=0.1)(LRRange(1e-9, 10.0))

    assert narrowed.min == 1e-9
    assert narrowed.max == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("policy", ["top", "both"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.99])
def test_the_width_that_is_left_is_what_was_not_taken(policy, fraction):
    suggested = LRRange(0.002, 0.7)
    narrowed = Narrowing(policy, fraction)(suggested)

    assert narrowed.decades == pytest.approx((1 - fraction) * suggested.decades, rel=1e-9)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_outside_0_to_1_is_refused(complains, fraction):
    with complains(f"narrowing_fraction={fraction}", "below 1"):
        Narrowing("top", fraction)


def test_an_unknown_policy_brings_the_nearest_name(complains):
    with complains("narrowing", "'botth'", "did you mean 'both'?"):
        Narrowing("botth")


@given(ranges(), st.sampled_from([*POLICIES]), st.floats(0, 1, exclude_max=True))
def test_a_narrowed_range_is_inside(suggested, policy, fraction):
    try:
        narrowed = Narrowing(policy, fraction)(suggested)
    except LRRTError:
        # Nothing is left out, or nothing is left between the two ends.
        nothing = policy == "both" and fraction == 0
        assert nothing or (1 - fraction) * suggested.decades < 1e-12
        return
    assert suggested.min <= narrowed.min < narrowed.max <= suggested.max
