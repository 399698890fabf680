import numpy as np
import pytest

from lrrt_stage import LRRTError, Smoothing

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
    with pytest.raises(LRRTError, match=f"beta={beta} is outside"):
        Smoothing(beta=beta)


def test_an_unknown_average_names_the_nearest():
    with pytest.raises(LRRTError, match="did you mean 'corrected'"):
        Smoothing("correct")
