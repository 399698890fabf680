import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import AVERAGES, LRRTError, Smoothing, zero_phase
from lrrt_stage.curve.smoothing import running_quantile
from tests.strategies import ANY_FLOAT

# L = 4, 2, 8 with β = 0.5, worked by hand from the formulas of the article's Fig 3.
RAW = [4.0, 2.0, 8.0]
BY_HAND = {
    "biased": [2.0, 2.0, 5.0],
    "corrected": [2.0 / 0.5, 2.0 / 0.75, 5.0 / 0.875],
    "from-first": [4.0, 3.0, 5.5],
}


@pytest.mark.parametrize("average", BY_HAND)
def test_averages_follow_their_formulas(average):
    assert np.allclose(Smoothing(average, 0.5)(RAW), BY_HAND[average], rtol=1e-14)


@pytest.mark.parametrize("average", BY_HAND)
def test_beta_zero_is_the_raw_loss(average):
    assert Smoothing(average, 0.0)(RAW).tolist() == RAW


def test_biased_is_corrected_times_its_correction_over_a_long_curve():
    raw = np.random.default_rng(0).normal(2, 0.3, 500)
    t = np.arange(1, 501)
    corrected, biased = Smoothing("corrected", 0.98)(raw), Smoothing("biased", 0.98)(raw)
    assert np.allclose(biased, corrected * (1 - 0.98**t))


def test_all_three_lag_behind_a_falling_loss():
    falling = np.linspace(2, 1, 100)
    for average in ("corrected", "from-first"):
        assert (Smoothing(average)(falling)[1:] > falling[1:]).all()


def test_values_from_a_nan_on_are_nan_and_earlier_ones_are_untouched():
    smoothed = Smoothing("corrected", 0.5)([4.0, 2.0, np.nan, 1.0])
    assert np.allclose(smoothed[:2], BY_HAND["corrected"][:2])
    assert np.isnan(smoothed[2:]).all()


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5])
def test_a_beta_outside_its_range_is_named(beta):
    with pytest.raises(LRRTError, match=f"beta={beta} must be"):
        Smoothing(beta=beta)


def test_an_unknown_average_names_the_nearest():
    with pytest.raises(LRRTError, match="'corrected'"):
        Smoothing("correct")


def symmetric_average(loss, beta):
    """The definition, term by term."""
    n = len(loss)
    weights = [[beta ** abs(i - j) for j in range(n)] for i in range(n)]
    return [sum(w * x for w, x in zip(row, loss, strict=True)) / sum(row) for row in weights]


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.3, 0.9, 0.98, 0.9999])
@pytest.mark.parametrize("n", [1, 2, 3, 50, 400])
def test_zero_phase_is_the_symmetric_exponential_kernel(n, beta):
    raw = np.random.default_rng(n).normal(2, 0.5, n)
    assert np.allclose(zero_phase(raw, beta), symmetric_average(raw, beta), rtol=1e-11)


def test_zero_phase_by_hand():
    # β = 1/2: (4 + 2/2 + 8/4) / (1 + 1/2 + 1/4), (4/2 + 2 + 8/2) / 2, (4/4 + 2/2 + 8) / (7/4).
    assert np.allclose(zero_phase(RAW, 0.5), [4.0, 4.0, 40 / 7], rtol=1e-14)


def test_zero_phase_does_not_tell_before_from_after():
    raw = np.random.default_rng(1).normal(2, 0.5, 60)
    assert np.allclose(zero_phase(raw[::-1], 0.9), zero_phase(raw, 0.9)[::-1], rtol=1e-13)


def test_zero_phase_ends_as_the_corrected_average():
    raw = np.random.default_rng(2).normal(2, 0.5, 60)
    assert zero_phase(raw, 0.9)[-1] == pytest.approx(Smoothing("corrected", 0.9)(raw)[-1])


def test_zero_phase_keeps_a_valley_where_it_is_and_the_averages_do_not():
    valley = np.abs(np.arange(201.0) - 100)
    assert np.argmin(zero_phase(valley, 0.9)) == 100
    assert all(np.argmin(Smoothing(average, 0.9)(valley)[50:]) > 50 for average in AVERAGES)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_zero_phase_leaves_the_tail_out_from_a_value_that_is_not_finite(bad):
    averaged = zero_phase([*RAW, bad, 1.0], 0.5)
    assert np.allclose(averaged[:3], symmetric_average(RAW, 0.5))
    assert np.isnan(averaged[3:]).all()
    assert np.isnan(zero_phase([bad, 1.0], 0.5)).all()
    assert zero_phase([], 0.5).shape == (0,)


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_zero_phase_names_a_beta_outside_its_range(beta):
    with pytest.raises(LRRTError, match=f"beta={beta} must be"):
        zero_phase(RAW, beta)


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_lags_behind_a_straight_line_by_49_iterations_at_a_beta_of_0_98(average):
    per_iteration = 0.25
    falling = 1000 - per_iteration * np.arange(2000)
    lag = Smoothing(average, 0.98)(falling) - falling
    assert lag[-1] == pytest.approx(per_iteration * 49, rel=1e-9)
    assert average == "biased" or lag.max() <= per_iteration * 49 * (1 + 1e-9)


def test_a_running_quantile_is_one_of_the_values_so_far():
    assert running_quantile(np.array([3.0, 1.0, 2.0, 9.0]), 0.5).tolist() == [3.0, 1.0, 2.0, 2.0]


FINITE = st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40)
BETAS = st.floats(0, 0.999)


def nearly(values):
    """How far rounding may move an average of these values."""
    return 1e-9 * np.abs(values).max() + 1e-300


@given(FINITE, st.sampled_from(["corrected", "from-first"]), BETAS)
def test_an_average_lies_between_the_extremes_so_far(loss, average, beta):
    smoothed = Smoothing(average, beta)(loss)
    assert (smoothed >= np.minimum.accumulate(loss) - nearly(loss)).all()
    assert (smoothed <= np.maximum.accumulate(loss) + nearly(loss)).all()


@given(FINITE, st.sampled_from(AVERAGES), BETAS, st.integers(1, 39))
def test_an_average_does_not_know_the_future(loss, average, beta, cut):
    assert (
        Smoothing(average, beta)(loss)[:cut].tolist()
        == Smoothing(average, beta)(loss[:cut]).tolist()
    )


@given(FINITE, BETAS)
def test_the_average_of_both_sides_lies_between_the_extremes_and_is_the_same_backwards(loss, beta):
    averaged = zero_phase(loss, beta)
    assert averaged.min() >= min(loss) - nearly(loss)
    assert averaged.max() <= max(loss) + nearly(loss)
    assert np.allclose(zero_phase(loss[::-1], beta)[::-1], averaged, rtol=0, atol=nearly(loss))


@given(st.lists(ANY_FLOAT, max_size=40), st.sampled_from(AVERAGES), BETAS)
def test_averages_of_any_losses_are_finite_up_to_the_first_explosion(loss, average, beta):
    end = next((i for i, value in enumerate(loss) if not abs(value) <= 1e100), len(loss))
    for averaged in (Smoothing(average, beta)(loss), zero_phase(loss, beta)):
        assert np.isfinite(averaged).tolist() == [True] * end + [False] * (len(loss) - end)
