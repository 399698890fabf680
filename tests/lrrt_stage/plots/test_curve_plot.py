from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import (
    Confidence,
    Consensus,
    LRCurve,
    LRRange,
    NoSuggestion,
    Reading,
    Smoothing,
    Suggestion,
    Verdict,
)
from lrrt_stage.plots import drawing
from lrrt_stage.plots.comparison_plot import comparison_figure, plot_losses, plot_ranges
from lrrt_stage.plots.curve_plot import plot_curve, plot_reading

LR = np.geomspace(1e-5, 10, 80)
LOSS = 2.3 - 2 * np.exp(-((np.log10(LR) + 1) ** 2))
CURVE = LRCurve(LR, LOSS, epochs=3.5)
FULL = np.where(np.arange(80) % 20 == 0, 1.5, np.nan)
WATCHED = replace(CURVE, val_loss=LOSS + 0.1, full_val_loss=FULL, probe_loss=LOSS - 0.1)
ROBUST = Suggestion(LRRange(0.003, 0.03), Confidence(0.02, 0.05, Verdict.CLEAR))
ARTICLE = Suggestion(LRRange(0.001, 0.01), Confidence(0.01, 0.01, Verdict.CLEAR))
STEEPEST = Suggestion(LRRange(0.002, 0.02), Confidence(0.02, 0.02, Verdict.CLEAR))
RULES = {"robust": ROBUST, "article": ARTICLE, "steepest": STEEPEST}
READING = Reading(CURVE, RULES, "robust", Smoothing())


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def drawn(ax, start):
    """The line whose label begins so."""
    (line,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(start)]
    return np.array(line.get_xdata(), float), np.array(line.get_ydata(), float)


def assert_covers_nothing(figure):
    """No legend reaches into axes, or out of the figure."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        if ax.get_legend() is not None:
            box = ax.get_legend().get_window_extent()
            assert not any(box.overlaps(other.get_window_extent()) for other in figure.axes)
            assert figure.bbox.contains(box.x0, box.y0)
            assert figure.bbox.contains(box.x1, box.y1)


def test_the_losses_are_drawn_over_a_log_axis():
    ax = plot_curve(CURVE)
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "learning rate")
    assert "80 iterations, 3.5 epochs" in ax.get_title()
    assert drawn(ax, "loss of each batch")[1].tolist() == CURVE.loss.tolist()
    assert np.allclose(drawn(ax, "smoothed")[1], Smoothing()(CURVE.loss))
    assert_covers_nothing(ax.figure)


def test_validation_is_drawn_where_it_was_evaluated():
    ax = plot_curve(WATCHED)
    assert drawn(ax, "validation loss (sample)")[1].tolist() == (LOSS + 0.1).tolist()
    lr, full = drawn(ax, "validation loss, full")
    assert lr[np.isfinite(full)].tolist() == LR[::20].tolist()
    assert drawn(ax, "loss of the probe")[1].tolist() == (LOSS - 0.1).tolist()


@pytest.mark.parametrize("rule", ["robust", "article", "steepest"])
def test_the_chosen_rule_and_one_more_are_marked(rule):
    ax = plot_reading(replace(READING, rule=rule))
    chosen, other = RULES[rule], "robust" if rule == "article" else "article"
    assert f"suggested range ({rule}): {chosen.range}" in labels(ax)
    assert drawn(ax, "maximum between")[0].tolist() == [
        chosen.confidence.low, chosen.confidence.high
    ]  # fmt: skip
    marked = {line.get_xdata()[0] for line in ax.get_lines() if len(set(line.get_xdata())) == 1}
    marked -= {chosen.confidence.low}
    assert marked == {chosen.range.max, RULES[other].range.max} - {chosen.confidence.low}
    assert_covers_nothing(ax.figure)


def test_a_consensus_is_drawn_with_the_maxima_of_all_tests():
    ranges = (ROBUST.range, LRRange(0.005, 0.05), None, LRRange(0.004, 0.04))
    consensus = Consensus(LRRange(0.004, 0.035), ranges, 0.6)
    ax = plot_reading(replace(READING, consensus=consensus))
    assert "consensus of 4 tests: 0.004 to 0.035" in labels(ax)
    assert "this test alone (robust): 0.03" in labels(ax)
    dotted = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert dotted == [0.05, 0.04]


def test_what_has_no_suggestion_says_so():
    none = Suggestion.missing(NoSuggestion("too flat"))
    for reading in (
        replace(READING, suggestions=RULES | {"robust": none}),
        replace(READING, consensus=NoSuggestion("too few agree")),
    ):
        (label,) = [label for label in labels(plot_reading(reading)) if "none" in label]
        assert str(Verdict.NO_DESCENT) in label


def test_curves_that_ended_badly_can_be_drawn():
    for curve in (
        LRCurve(LR[:30], [*np.linspace(2, 1, 29), np.nan], stop="non-finite"),
        LRCurve(LR[:1], [np.nan], stop="non-finite"),
    ):
        assert drawing.to_svg(plot_reading(replace(READING, curve=curve)).figure)


def test_an_explosion_leaves_the_axis_at_the_top():
    # A plateau at 2, a descent to 0, then a thousand million.
    loss = np.concatenate([np.full(40, 2.0), np.linspace(2, 0, 35), np.geomspace(1, 1e9, 5)])
    ax = plot_curve(LRCurve(LR, loss, stop="diverged"))
    assert ax.get_ylim() == pytest.approx((-0.3, 3.5))


def test_axes_of_the_caller_are_used():
    figure, (left, right) = drawing.new_figure(columns=2)
    assert plot_reading(READING, left) is left
    assert right.get_lines() == []
    assert figure.axes == [left, right]


def test_several_tests_have_a_line_and_a_row_each():
    none = replace(READING, suggestions={"robust": Suggestion.missing(NoSuggestion("flat"))})
    readings = {"_first $x$": READING, "second": none}
    losses, ranges = plot_losses(readings), plot_ranges(readings)
    assert_covers_nothing(losses.figure)
    assert_covers_nothing(ranges.figure)
    assert [label.strip() for label in labels(losses)] == list(readings)
    assert [tick.get_text() for tick in ranges.get_yticklabels()] == list(readings)
    shown, intervals = ranges.collections
    assert [segment[:, 0].tolist() for segment in shown.get_segments()] == [[0.003, 0.03]]
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[0.02, 0.05]]
    assert ranges.get_ylim()[0] > ranges.get_ylim()[1]  # the first row is at the top


def test_long_names_of_rows_leave_the_legends_inside():
    readings = {name * 5: READING for name in ("a name ", "another ", "a third ")}
    assert_covers_nothing(comparison_figure("Compared", readings, lr_in_use=0.02))


def test_the_probe_is_drawn_where_all_tests_have_one():
    probed = replace(READING, curve=WATCHED)
    both = plot_losses({"a": probed, "b": probed})
    assert both.get_lines()[0].get_ydata().tolist() == (LOSS - 0.1).tolist()
    mixed = plot_losses({"a": probed, "b": READING})
    assert mixed.get_lines()[0].get_ydata().tolist() == pytest.approx(Smoothing()(LOSS).tolist())


def test_the_same_figure_is_the_same_file():
    assert drawing.to_svg(plot_curve(CURVE).figure) == drawing.to_svg(plot_curve(CURVE).figure)


def test_a_figure_grows_by_its_legends():
    figure, (ax,) = drawing.new_figure()
    before = figure.get_figheight()
    for number in range(12):
        ax.plot([1, 2], [1, 2], label=f"a label that needs a row of its own, number {number}" * 2)
    drawing.legend_below(ax)
    assert drawing.finished(figure).get_figheight() > before + 1.5
    assert_covers_nothing(figure)
