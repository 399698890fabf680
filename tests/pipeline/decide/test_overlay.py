import numpy as np
import pytest

from lrrt_stage import Confidence, LRCurve, LRRange, LRRTError, Smoothing, Verdict
from lrrt_stage.charts import Interval, Line, Mark
from pipeline.decide.overlay import Overlaid, overlay_chart


def overlaid(name, *, probe=True, lr_range=None, sure=None, start=1e-5):
    lr = np.geomspace(start, 1, 40)
    loss = 2 - np.exp(-((np.log10(lr) + 2) ** 2))
    curve = LRCurve(lr, loss, probe_loss=loss + 1 if probe else None)
    return Overlaid(name, curve, Smoothing(beta=0.0), lr_range, sure)


SURE = Confidence(0.02, 0.05, Verdict.CLEAR)
A = overlaid("a", lr_range=LRRange(0.003, 0.03), sure=SURE)


def items(panel, kind):
    return [item for item in panel.items if isinstance(item, kind)]


def test_the_probes_losses_lie_over_each_other_where_all_tests_have_one():
    losses, _ = overlay_chart("", [A, overlaid("b")]).panels
    assert losses.title == "Loss of the probe"
    first, second = items(losses, Line)
    assert (first.name, second.name) == ("a", "b")
    assert np.array_equal(first.y, A.curve.probe_loss)


def test_a_test_without_a_probe_puts_all_on_the_training_loss():
    losses, _ = overlay_chart("", [A, overlaid("b", probe=False)]).panels
    assert losses.title == "Smoothed training loss"
    assert np.allclose(items(losses, Line)[0].y, A.curve.loss)


def test_each_test_has_a_row_with_its_range_and_the_interval_of_its_maximum():
    _, ranges = overlay_chart("", [A, overlaid("none")]).panels
    shown, sure = items(ranges, Interval)
    assert shown.labels == sure.labels == ("a", "none")
    assert (shown.low[0], shown.high[0]) == (0.003, 0.03)
    assert (sure.low[0], sure.mid[0], sure.high[0]) == (0.02, 0.03, 0.05)
    # One without a suggestion keeps its row, and is empty.
    assert np.isnan([shown.low[1], shown.high[1], sure.low[1], sure.mid[1]]).all()


def test_both_panels_have_the_axis_of_all_tests_and_the_learning_rate_in_use():
    chart = overlay_chart("", [A, overlaid("b", start=1e-7)], lr_in_use=0.02)
    for panel in chart.panels:
        assert panel.xlim == pytest.approx((1e-7, 1))
        (mark,) = items(panel, Mark)
        assert mark.x == 0.02
    chart.figure()
    chart.page()


@pytest.mark.parametrize(
    ("tests", "message"), [([], "no range test to draw"), ([A, A], "occur more than once")]
)
def test_what_cannot_be_drawn_is_named(tests, message):
    with pytest.raises(LRRTError, match=message):
        overlay_chart("", tests)
