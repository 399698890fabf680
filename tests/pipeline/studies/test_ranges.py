from __future__ import annotations

import numpy as np
import pytest

from lrrt_stage import LRRange
from pipeline.studies.ranges import best_covered, farthest_pair, gap, overlap, overlaps, quantiles

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


def test_overlaps_is_a_symmetric_matrix_of_all_pairs():
    matrix = overlaps([LOW, MIDDLE, HIGH])
    third = pytest.approx(1 / 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, third], [0, third, 1]]


def test_overlap_and_gap_are_symmetric_bounded_and_do_not_depend_on_the_unit():
    ranges = random_ranges(30)
    matrix = overlaps(ranges)
    for i, a in enumerate(ranges):
        for j, b in enumerate(ranges):
            assert overlap(a, b) == overlap(b, a) == matrix[i, j]
            assert 0 <= overlap(a, b) <= 1
            assert gap(a, b) == gap(b, a) >= 0
            assert (gap(a, b) > 0) == (overlap(a, b) == 0)
    scaled = [LRRange(each.min * 37, each.max * 37) for each in ranges]
    assert np.allclose(overlaps(scaled), matrix, atol=1e-12)
    assert farthest_pair(scaled) == farthest_pair(ranges)


def test_the_gap_in_decades():
    assert gap(LOW, HIGH) == gap(HIGH, LOW) == pytest.approx(1)  # 0.01 to 0.1
    assert gap(LOW, MIDDLE) == 0
    assert gap(MIDDLE, HIGH) == 0


def test_the_widest_gap_counts_before_the_distance_of_the_maxima():
    # Of the second, the last is 2 decades away; the third but 1, though its maximum is 6 higher.
    ranges = [LRRange(1e-3, 1.0), LRRange(1e-5, 1e-4), LRRange(1e-3, 100.0), LRRange(0.01, 0.02)]
    assert farthest_pair(ranges) == (1, 3)


def test_the_maxima_decide_among_equal_gaps_and_where_there_is_none():
    none = [LRRange(0.01, 1.0), LRRange(0.001, 2.0), LRRange(0.02, 0.3)]
    assert farthest_pair(none) == (1, 2)
    equal = [LRRange(0.01, 0.1), LRRange(1.0, 2.0), LRRange(1.0, 5.0)]
    assert farthest_pair(equal) == (0, 2)


def test_a_tie_to_the_last_digits_of_a_logarithm_is_a_tie():
    more = 1 + 1e-12
    gaps = [LRRange(0.01, 0.1), LRRange(1.0, 5.0), LRRange(1.0 * more, 2.0)]
    assert farthest_pair(gaps) == (0, 1)  # the maxima decide
    maxima = [LRRange(0.1, 1.0), LRRange(0.1, 2.0 * more), LRRange(0.01, 2.0)]
    assert farthest_pair(maxima) == (0, 2)  # the minima decide


def test_equal_maxima_leave_it_to_the_minima():
    ranges = [LRRange(0.1, 1.0), LRRange(0.1, 1.0), LRRange(0.01, 1.0)]
    assert farthest_pair(ranges) == (0, 2)


def test_ranges_of_which_no_two_differ_are_refused(complains):
    with complains("all 3 ranges", "0.1 to 10", "no two differ"):
        farthest_pair([HIGH] * 3)
