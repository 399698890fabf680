from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.studies.statistics import decompose, paired_effect, slope

NAN = float("nan")


def test_the_variances_by_hand():
    # 0, 1, 2, 3: squares of 1.5 and 0.5 twice each, over 3; 0, 1: twice 1/4, over 1.
    parts = decompose([0, 1, 2, 3], [5, 6])

    assert parts.total_variance == pytest.approx(5 / 3)
    assert parts.order_variance == pytest.approx(1 / 2)
    assert parts.init_variance == pytest.approx(7 / 6)
    assert parts.order_share == pytest.approx(0.3)
    assert parts.init_share == pytest.approx(0.7)
    assert 0 <= parts.low <= 0.3 <= parts.high <= 1


def test_an_order_that_varies_more_than_the_whole_has_all_of_it():
    parts = decompose([0, 1], [0, 3])

    assert parts.order_variance == pytest.approx(4.5)
    assert (parts.init_variance, parts.order_share, parts.init_share) == (0, 1, 0)


def test_an_order_without_effect_has_no_share():
    # Three times 0.1 has a rounded mean that is not 0.1.
    parts = decompose([0, 1, 2], [0.1, 0.1, 0.1])

    assert (parts.order_variance, parts.order_share, parts.init_share) == (0, 0, 1)
    assert (parts.low, parts.high) == (0, 0)


def test_without_any_variance_there_are_no_shares():
    parts = decompose([0.1, 0.1, 0.1], [0, 1])

    assert (parts.total_variance, parts.init_variance) == (0, 0)
    assert parts.order_variance == pytest.approx(1 / 2)
    shares = (parts.order_share, parts.init_share, parts.low, parts.high)
    assert all(math.isnan(value) for value in shares)


def simulated(seed: int, share: float, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Tests whose log10(max) has variance 0.09, of which the order has ``share``."""
    rng = np.random.default_rng(seed)
    order, init = 0.3 * math.sqrt(share), 0.3 * math.sqrt(1 - share)
    varied = -0.5 + rng.normal(0, init, n) + rng.normal(0, order, n)
    return varied, -0.2 + rng.normal(0, order, n)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(share):
    covered = 0
    for seed in range(200):
        parts = decompose(*simulated(seed, share), confidence=0.9, seed=seed)
        covered += parts.low <= share <= parts.high
    # 0.9 less what a bootstrap of 20 values misses; the count of 200 has a deviation of 0.02.
    assert 0.82 <= covered / 200 <= 0.96


def test_many_tests_recover_the_shares():
    parts = decompose(*simulated(0, 0.25, n=2000))

    assert parts.total_variance == pytest.approx(0.09, rel=0.05)
    assert parts.order_share == pytest.approx(0.25, abs=0.05)
    assert parts.high - parts.low < 0.06


def test_the_bootstrap_interval_is_that_of_the_f_distribution_for_many_normal_values():
    # order / total variance over its true value has the F distribution with (m - 1, n - 1).
    varied, order_only = simulated(3, 0.25, n=400)
    parts = decompose(varied, order_only, confidence=0.9)
    ratio = order_only.var(ddof=1) / varied.var(ddof=1)

    assert parts.low == pytest.approx(ratio / stats.f.ppf(0.95, 399, 399), rel=0.05)
    assert parts.high == pytest.approx(ratio / stats.f.ppf(0.05, 399, 399), rel=0.05)


def test_the_interval_repeats_with_its_seed_and_widens_with_its_confidence():
    samples = simulated(1, 0.5)
    first, again = decompose(*samples, seed=7), decompose(*samples, seed=7)
    other, narrow = decompose(*samples, seed=8), decompose(*samples, 0.5, seed=7)

    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < narrow.low < narrow.high < first.high


def test_shares_depend_neither_on_the_unit_nor_on_the_centre():
    varied, order_only = simulated(2, 0.5)
    parts, moved = decompose(varied, order_only), decompose(5 + 8 * varied, 8 * order_only - 3)

    assert moved.total_variance == pytest.approx(64 * parts.total_variance)
    assert moved.order_share == pytest.approx(parts.order_share)
    assert (moved.low, moved.high) == pytest.approx((parts.low, parts.high))


def test_values_that_have_no_variance_are_refused(complains):
    with complains("varied", "at least 2"):
        decompose([1.0], [0.0, 1.0])
    with complains("order_only", "at least 2"):
        decompose([0.0, 1.0], [])
    with complains("order_only[1] is nan", "leave out"):
        decompose([0.0, 1.0], [0.0, NAN])
    with complains("varied has shape (1, 2)", "flat list"):
        decompose([[0.0, 1.0]], [0.0, 1.0])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 90, NAN])
def test_a_confidence_outside_0_to_1_is_refused(complains, confidence):
    for call in (decompose, slope, paired_effect):
        with complains(f"confidence={confidence}", "(0, 1)", "try 0.9"):
            call([1.0, 2.0], [1.0, 2.0], confidence)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_power_of_the_batch_size_is_found_exactly(exponent):
    sizes = np.array([32, 64, 128, 512])
    fit = slope(sizes, 0.003 * sizes**exponent)
    assert (fit.value, fit.low, fit.high) == pytest.approx((exponent,) * 3, abs=1e-12)


def test_the_slope_by_hand():
    # log10: x = 1, 2, 3 and y = 0, 1, 1. Slope 1/2, residuals -1/6, 1/3, -1/6, so the standard
    # error is sqrt((1/6) / 1 / 2); the 95 % point of t with one degree of freedom is 6.3138.
    fit = slope([10, 100, 1000], [1, 10, 10])

    assert fit.value == pytest.approx(0.5)
    assert fit.high - fit.value == pytest.approx(6.3138 * math.sqrt(1 / 12), rel=1e-4)
    assert fit.value - fit.low == pytest.approx(fit.high - fit.value)


def test_the_slope_is_that_of_other_implementations():
    rng = np.random.default_rng(0)
    sizes = np.array([16, 16, 32, 64, 128, 256, 256])
    lrs = 0.01 * sizes**0.7 * 10 ** rng.normal(0, 0.2, 7)
    fit = slope(sizes, lrs, confidence=0.8)

    x, y = np.log10(sizes), np.log10(lrs)
    reference = stats.linregress(x, y)
    (value, _), covariance = np.polyfit(x, y, 1, cov=True)
    half = 1.4759 * math.sqrt(covariance[0, 0])  # the 90 % point of t with 5 degrees of freedom
    assert fit.value == pytest.approx(reference.slope)
    assert (fit.value, fit.low, fit.high) == pytest.approx(
        (value, value - half, value + half), 1e-4
    )


def test_two_points_have_a_slope_without_an_interval():
    fit = slope([10, 1000], [0.1, 1.0])
    assert fit.value == pytest.approx(0.5)
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)


def test_what_has_no_slope_is_refused(complains):
    with complains("all batch sizes are 64", "2 distinct"):
        slope([64, 64, 64], [0.1, 0.2, 0.3])
    with complains("batch_sizes", "at least 2"):
        slope([64], [0.1])
    with complains("batch_sizes has 3 values", "lrs has 2"):
        slope([32, 64, 128], [0.1, 0.2])
    with complains("lrs holds 0", "positive"):
        slope([32, 64], [0.1, 0.0])
    with complains("lrs[1] is nan"):
        slope([32, 64], [0.1, NAN])


def test_the_effect_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1; the 95 % point of t with 2 degrees is 2.9200.
    effect = paired_effect([5, 0, -1], [6, 2, 2])

    assert effect.mean == 2
    assert effect.high - effect.mean == pytest.approx(2.9200 / math.sqrt(3), rel=1e-4)
    assert effect.mean - effect.low == pytest.approx(effect.high - effect.mean)


def test_the_effect_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, 12)
    after = before + rng.normal(0.3, 0.4, 12)
    effect = paired_effect(before, after, confidence=0.95)

    interval = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_an_effect_that_is_the_same_in_every_pair_has_no_width():
    effect = paired_effect([0, 1, 2], [0.5, 1.5, 2.5])
    assert (effect.mean, effect.low, effect.high) == (0.5, 0.5, 0.5)


def test_one_pair_has_a_mean_without_an_interval():
    effect = paired_effect([1.0], [3.0])
    assert effect.mean == 2
    assert math.isnan(effect.low)
    assert math.isnan(effect.high)


def test_what_has_no_effect_is_refused(complains):
    with complains("before", "at least 1"):
        paired_effect([], [])
    with complains("before has 2 values", "after has 1"):
        paired_effect([1.0, 2.0], [1.0])
    with complains("after[0] is inf"):
        paired_effect([1.0], [math.inf])
