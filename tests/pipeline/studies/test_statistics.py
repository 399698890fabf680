from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lrrt_stage import LRRange
from pipeline.studies.statistics import (
    Estimate,
    best_covered,
    order_share,
    overlap,
    quantiles,
    slope,
)

LOW = LRRange(0.001, 0.01)
MIDDLE = LRRange(0.01, 1.0)
HIGH = LRRange(0.1, 10.0)


def random_ranges(count: int, seed: int = 0) -> list[LRRange]:
    ends = 10 ** np.sort(np.random.default_rng(seed).uniform(-4, 1, (count, 2)))
    return [LRRange(low, high) for low, high in ends.tolist()]


def test_the_quantiles_by_hand():
    # Three values: the 10 % and 90 % quantiles lie at the places 0.2 and 1.8 of 0 … 2.
    table = quantiles([HIGH, LOW, MIDDLE])

    low, high = [0.001 + 0.2 * 0.009, 0.01, 0.01 + 0.8 * 0.09], [0.01 + 0.2 * 0.99, 1, 1 + 0.8 * 9]
    assert table.loc["min"].tolist() == pytest.approx(low)
    assert table.loc["max"].tolist() == pytest.approx(high)
    assert list(table) == ["q10", "median", "q90"]
    assert quantiles([HIGH]).loc["max"].tolist() == [10.0] * 3


def test_the_best_covered_maximum_is_inside_the_most_ranges():
    # 1 is the maximum of the middle range and inside the high one; no rate is inside all three.
    assert best_covered([LOW, MIDDLE, HIGH]) == (1.0, 2)
    assert best_covered([LOW]) == (0.01, 1)
    # Of rates that are inside as many, the largest.
    assert best_covered([LOW, HIGH]) == (10.0, 1)
    # The end of a range is inside it, whatever its last digit is.
    assert best_covered([LRRange(1e-3, 0.1), LRRange(0.1 * (1 + 1e-12), 1.0)]) == (0.1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_learning_rate_is_inside_more_ranges(seed):
    ranges = random_ranges(15, seed)
    maximum, inside = best_covered(ranges)
    for lr in np.geomspace(1e-4, 10, 500):
        covering = sum(lr_range.min <= lr <= lr_range.max for lr_range in ranges)
        assert covering <= inside
        assert covering < inside or lr <= maximum


def test_the_overlap_is_intersection_over_union_in_decades():
    assert overlap(MIDDLE, HIGH) == pytest.approx(1 / 3)  # 0.1 to 1 of 0.01 to 10
    assert overlap(LRRange(0.001, 10.0), MIDDLE) == pytest.approx(2 / 4)  # one inside the other
    assert overlap(LOW, HIGH) == 0
    assert overlap(LOW, MIDDLE) == 0  # they share an end alone
    assert overlap(HIGH, HIGH) == 1


def test_the_overlap_is_symmetric_bounded_and_does_not_depend_on_the_unit():
    ranges = random_ranges(30)
    scaled = [LRRange(each.min * 37, each.max * 37) for each in ranges]
    for i, a in enumerate(ranges):
        for j, b in enumerate(ranges):
            assert overlap(a, b) == overlap(b, a)
            assert 0 <= overlap(a, b) <= 1
            assert overlap(scaled[i], scaled[j]) == pytest.approx(overlap(a, b), abs=1e-12)


def test_the_variances_by_hand():
    # 0, 1, 2, 3: squares of 1.5 and 0.5 twice each, over 3; 0, 1: twice 1/4, over 1.
    share = order_share([0, 1, 2, 3], [5, 6])

    assert share.value == pytest.approx(0.3)
    assert 0 <= share.low <= 0.3 <= share.high <= 1


def test_an_order_that_varies_more_than_the_whole_has_all_of_it():
    share = order_share([0, 1], [0, 3])

    assert share.value == 1


def test_an_order_without_effect_has_no_share():
    # Three times 0.1 has a rounded mean that is not 0.1.
    share = order_share([0, 1, 2], [0.1, 0.1, 0.1])

    assert share == Estimate(0, 0, 0)


def test_without_any_variance_there_are_no_shares():
    share = order_share([0.1, 0.1, 0.1], [0, 1])

    assert all(math.isnan(value) for value in (share.value, share.low, share.high))


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
        found = order_share(*simulated(seed, share), seed=seed)
        covered += found.low <= share <= found.high
    # 0.9 less what a bootstrap of 20 values misses; the count of 200 has a deviation of 0.02.
    assert 0.82 <= covered / 200 <= 0.96


def test_many_tests_recover_the_shares():
    share = order_share(*simulated(0, 0.25, n=2000))

    assert share.value == pytest.approx(0.25, abs=0.05)
    assert share.high - share.low < 0.06


def test_the_bootstrap_interval_is_that_of_the_f_distribution_for_many_normal_values():
    # order / total variance over its true value has the F distribution with (m - 1, n - 1).
    varied, order_only = simulated(3, 0.25, n=400)
    share = order_share(varied, order_only)
    ratio = order_only.var(ddof=1) / varied.var(ddof=1)

    assert share.low == pytest.approx(ratio / stats.f.ppf(0.95, 399, 399), rel=0.05)
    assert share.high == pytest.approx(ratio / stats.f.ppf(0.05, 399, 399), rel=0.05)


def test_the_interval_repeats_with_its_seed():
    samples = simulated(1, 0.5)
    first, again, other = (order_share(*samples, seed=seed) for seed in (7, 7, 8))

    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_shares_depend_neither_on_the_unit_nor_on_the_centre():
    varied, order_only = simulated(2, 0.5)
    share, moved = order_share(varied, order_only), order_share(5 + 8 * varied, 8 * order_only - 3)

    assert moved.value == pytest.approx(share.value)
    assert moved.low == pytest.approx(share.low)
    assert moved.high == pytest.approx(share.high)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_power_of_the_batch_size_is_found_exactly(exponent):
    sizes = np.array([32, 64, 128, 512])
    fit = slope(sizes, 0.003 * sizes**exponent)
    assert (fit.value, fit.low, fit.high) == pytest.approx((exponent,) * 3, abs=1e-7)


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
    fit = slope(sizes, lrs)

    x, y = np.log10(sizes), np.log10(lrs)
    (value, _), covariance = np.polyfit(x, y, 1, cov=True)
    half = 2.0150 * math.sqrt(covariance[0, 0])  # the 95 % point of t with 5 degrees of freedom
    assert (fit.value, fit.low, fit.high) == pytest.approx(
        (value, value - half, value + half), 1e-4
    )


def test_two_points_have_a_slope_without_an_interval():
    fit = slope([10, 1000], [0.1, 1.0])
    assert fit.value == pytest.approx(0.5)
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)
