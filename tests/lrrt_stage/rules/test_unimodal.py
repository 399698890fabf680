import numpy as np
import pytest

from lrrt_stage.rules.unimodal import unimodal_regression


def fit(*values):
    return unimodal_regression(np.array(values, dtype=float)).tolist()


def test_a_valley_is_its_own_fit():
    assert fit(5, 3, 1, 2, 7) == [5, 3, 1, 2, 7]


def test_what_breaks_the_shape_is_averaged_away():
    assert fit(4, 2, 3, 0, 6) == [4, 2.5, 2.5, 0, 6]
    assert fit(4, 0, 6, 3, 9) == [4, 0, 4.5, 4.5, 9]


@pytest.mark.parametrize("values", [[3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0]])
def test_a_side_may_be_missing(values):
    assert fit(*values) == values


def test_no_valley_is_nearer():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.normal(size=12)
        error = np.square(unimodal_regression(values) - values).sum()
        for turn in range(13):
            for _ in range(20):
                falling = np.sort(generator.normal(size=turn))[::-1]
                rising = np.sort(generator.normal(size=12 - turn))
                assert error <= np.square(np.concatenate([falling, rising]) - values).sum()


def test_the_fit_falls_and_then_rises():
    values = unimodal_regression(np.random.default_rng(1).normal(size=200))
    signs = np.sign(np.diff(values))
    signs = signs[signs != 0]
    assert (np.diff(signs) >= 0).all()
