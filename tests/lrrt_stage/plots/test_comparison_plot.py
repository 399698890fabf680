import numpy as np
import pytest

from lrrt_stage import Confidence, LRCurve, LRRange, LRRTError, Reading, Smoothing, Suggestion
from lrrt_stage.errors import Verdict
from lrrt_stage.plots.comparison_plot import comparison_figure

FOUND = Suggestion(LRRange(0.003, 0.03), Confidence(0.02, 0.05, Verdict.CLEAR))


def reading(start):
    lr = np.geomspace(start, 1, 40)
    loss = 2 - np.exp(-((np.log10(lr) + 2) ** 2))
    return Reading(LRCurve(lr, loss), {"robust": FOUND}, "robust", Smoothing())


def test_both_axes_show_all_tests_and_the_learning_rate_in_use():
    figure = comparison_figure("A title", {"a": reading(1e-5), "b": reading(1e-7)}, lr_in_use=0.02)
    losses, ranges = figure.axes
    assert figure.get_suptitle() == "A title"
    assert [tick.get_text() for tick in ranges.get_yticklabels()] == ["a", "b"]
    for ax in (losses, ranges):
        low, high = ax.get_xlim()
        assert low < 1e-7 < 1 < high
        (line,) = [x for x in ax.get_lines() if "in use" in str(x.get_label())]
        assert line.get_xdata()[0] == 0.02
        assert any("in use: 0.02" in text.get_text() for text in ax.get_legend().get_texts())


def test_nothing_to_draw_is_refused():
    with pytest.raises(LRRTError, match="no range test to draw"):
        comparison_figure("", {})
