import numpy as np
import pytest

from lrrt_stage import LRRTError, ramp


def test_exponential_ramp_multiplies_by_a_constant_and_includes_both_ends():
    assert np.allclose(ramp(1e-3, 1e1, 5), [1e-3, 1e-2, 1e-1, 1e0, 1e1], rtol=1e-12)


def test_linear_ramp_adds_a_constant_and_includes_both_ends():
    assert ramp(1.0, 3.0, 5, "linear").tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_an_unknown_ramp_names_the_nearest():
    with pytest.raises(LRRTError, match="'exponential'"):
        ramp(1, 2, 3, "exponental")
