from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import AVERAGES, LRCurve, NoSuggestion, Reading, Smoothing, fit_unimodal
from pipeline.studies.curves import lag_of_minimum, loss_name, loss_read, stacked

LR = np.array([0.01, 0.1, 1.0, 10.0])


def curve(*loss: float) -> LRCurve:
    return LRCurve(LR[: len(loss)], np.array(loss))


def test_a_test_that_ended_early_keeps_its_last_loss():
    lr, loss = stacked([curve(3, 2), curve(3, 1, 2, 5), curve(4, 2, 9)])

    assert lr.tolist() == LR.tolist()
    assert loss.tolist() == [[3, 2, 2, 2], [3, 1, 2, 5], [4, 2, 9, 9]]


@pytest.mark.parametrize("last", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_padded_over(last):
    _, loss = stacked([curve(3, 2, last), curve(3, 1, 2)])

    assert loss.tolist() == [[3, 2, 2], [3, 1, 2]]


def test_the_grid_is_that_of_the_longest_also_where_its_end_is_not_finite():
    lr, loss = stacked([curve(3, 2, 1), curve(3, 2, 1, np.nan)])

    assert lr.tolist() == LR.tolist()
    assert loss.tolist() == [[3, 2, 1, 1], [3, 2, 1, 1]]


PER_ITERATION = 0.05


def valley(turn: int = 300, n: int = 500, noise: float = 0.0, seed: int = 0) -> LRCurve:
    """A loss that falls by 1 an iteration up to ``turn`` and rises as fast after it."""
    lr = 10.0 ** (-12 + PER_ITERATION * np.arange(n))
    error = noise * np.random.default_rng(seed).standard_normal(n)
    return LRCurve(lr, 1 + np.abs(np.arange(n) - turn) + error)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("beta", "iterations"), [(0.8, 3), (0.9, 6), (0.95, 13)])
def test_the_lag_on_a_valley_of_straight_sides(average, beta, iterations):
    # Long after the start, the average at m iterations past the turn is m - a + 2 a β^m with
    # a = β / (1 - β); its next difference is 1 - 2 β^(m + 1). So the minimum is the first m
    # with β^(m + 1) below 1/2: 0.8^4, 0.9^7 and 0.95^14.
    lag = lag_of_minimum(valley(), Smoothing(average, beta))
    assert lag == pytest.approx(PER_ITERATION * iterations, abs=1e-9)


def test_the_lag_is_about_ln_2_mean_ages_on_such_a_valley():
    # The same in the limit of small steps: x - a + 2 a exp(-x / a) is least at x = a ln 2.
    lag = lag_of_minimum(valley(), Smoothing("from-first", 0.98))
    age = 0.98 / (1 - 0.98)
    assert lag == pytest.approx(PER_ITERATION * age * np.log(2), abs=PER_ITERATION)


@pytest.mark.parametrize("seed", range(5))
def test_the_raw_loss_has_no_lag(seed):
    assert lag_of_minimum(valley(noise=20.0, seed=seed), Smoothing("corrected", 0.0)) == 0


def test_a_hundred_iterations_over_nine_decades_are_enough():
    # Descent by a logistic curve, then an exponential explosion; the noiseless minimum is known.
    # Smoothed at β = 0.98 it is reached 0.9 decades late.
    lr = np.geomspace(1e-7, 100, 100)
    x = np.log10(lr)
    clean = 2.3 - 1.2 / (1 + np.exp(-3 * (x + 2))) + 0.3 * np.exp(np.minimum(3.5 * x, 6))
    smoothing, errors = Smoothing("corrected", 0.98), []
    for seed in range(20):
        noise = 1 + 0.05 * np.random.default_rng(seed).standard_normal(100)
        late = x[30 + np.argmin(smoothing(clean * noise)[30:])] - x[np.argmin(clean)]
        assert late > 0.7
        errors.append(lag_of_minimum(LRCurve(lr, clean * noise), smoothing) - late)
    assert 0 < np.mean(errors) < 0.15
    assert np.std(errors) < 0.25


def test_a_loss_that_falls_to_the_last_rate_has_no_lag_to_measure():
    with pytest.raises(NoSuggestion, match="still falling at the last LR"):
        lag_of_minimum(valley(turn=499), Smoothing("corrected", 0.9))


def test_a_short_or_flat_curve_has_no_lag_to_measure():
    with pytest.raises(NoSuggestion, match="too few points"):
        lag_of_minimum(valley()[:9], Smoothing())
    flat = np.random.default_rng(0).normal(2, 0.1, 100)
    with pytest.raises(NoSuggestion, match="never fell"):
        lag_of_minimum(LRCurve(np.geomspace(1e-7, 100, 100), flat), Smoothing())


def test_the_loss_that_is_read_has_the_name_of_the_loss_that_was_fitted():
    loss = np.array([4.0] * 10 + [3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    lr = np.geomspace(1e-6, 10, 20)
    falls = LRCurve(lr, loss, probe_loss=loss + 1)
    flat = LRCurve(lr, loss, probe_loss=np.resize([4.0, 4.1], 20))
    fitted, fallen_back = (Reading(each, {}, "robust", Smoothing()) for each in (falls, flat))
    assert loss_name([fitted]) == "fit to the probe loss"
    assert loss_read(fitted).loss.tolist() == fit_unimodal(falls).fit.tolist()
    assert loss_name([fallen_back]) == "fit to the training loss"
    assert loss_read(fallen_back).loss.tolist() == fit_unimodal(LRCurve(lr, loss)).fit.tolist()
    assert loss_name([fitted, fallen_back]) == "fit to the probe loss or fit to the training loss"
    assert loss_name([replace(fitted, rule="valley")]) == "smoothed training loss"
    assert loss_read(replace(fitted, rule="valley")).loss.tolist() == Smoothing()(loss).tolist()
