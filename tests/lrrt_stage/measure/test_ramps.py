import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import RAMPS, LRRTError, RangeTestOptions, ramp
from tests.strategies import ANY_FLOAT, LEARNING_RATES, result_or_refusal


def test_exponential_ramp_multiplies_by_a_constant_and_includes_both_ends():
    assert np.allclose(ramp(1e-3, 1e1, 5), [1e-3, 1e-2, 1e-1, 1e0, 1e1], rtol=1e-12)


def test_linear_ramp_adds_a_constant_and_includes_both_ends():
    assert ramp(1.0, 3.0, 5, "linear").tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_an_unknown_ramp_names_the_nearest():
    with pytest.raises(LRRTError, match="'exponential'"):
        ramp(1, 2, 3, "exponental")


@given(
    LEARNING_RATES,
    st.floats(1, 1e15, exclude_min=True),
    st.integers(2, 300),
    st.sampled_from([*RAMPS]),
)
def test_a_ramp_rises_from_its_first_value_to_its_last(start, factor, iterations, kind):
    end = start * factor
    lr = ramp(start, end, iterations, kind)
    assert lr.shape == (iterations,)
    assert (lr[0], lr[-1]) == (start, end)
    assert (np.diff(lr) >= 0).all()


ANY_RATE = LEARNING_RATES | ANY_FLOAT
ANY_ITERATIONS = st.integers(0, 300) | st.just("epoch") | st.integers(10**7)


@given(ANY_RATE, ANY_RATE, ANY_ITERATIONS, st.sampled_from([*RAMPS]))
def test_the_options_of_a_ramp_give_one_or_are_refused(start, end, iterations, kind):
    options = result_or_refusal(RangeTestOptions, start, end, kind, iterations)
    if isinstance(options, RangeTestOptions) and options.iterations != 10**7:
        lr = options.learning_rates([], 1)
        assert ((lr > 0) & np.isfinite(lr)).all()
