from math import isfinite

import pytest
from hypothesis import given

from lrrt_stage import LRRange, LRRTError
from tests.strategies import ANY_FLOAT, result_or_refusal


@given(ANY_FLOAT, ANY_FLOAT)
def test_a_range_has_a_finite_width_or_is_refused(low, high):
    found = result_or_refusal(LRRange, low, high)
    if isinstance(found, LRRange):
        assert 0 < found.min < found.max
        assert 0 <= found.decades < 700
    else:
        assert not (low > 0 and high > low and isfinite(high / low))


def test_a_range_wider_than_any_float_is_refused():
    with pytest.raises(LRRTError, match="finite width"):
        LRRange(1e-300, 1e300)
