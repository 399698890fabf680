import io
import re
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lrrt_stage import LRRTError
from lrrt_stage.charts import (
    PALETTE,
    Band,
    Bars,
    Chart,
    Heatmap,
    Interval,
    Line,
    Mark,
    Panel,
    Span,
    write_page,
)

X = np.array([0.1, 1.0, 10.0, 100.0])
NAN, INF = np.nan, np.inf


def panel(*items, **options):
    return Panel("title", "x", "y", items, **options)


def axes_of(*items, **options):
    return Chart("", (panel(*items, **options),)).figure().axes[0]


def page_of(*items, **options):
    return Chart("", (panel(*items, **options),)).page()


def legend_of(axes):
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def entries_of(page, number=1):
    """Entries of a panel's legend on the page, in the order of their ranks."""
    legend = "legend" if number == 1 else f"legend{number}"
    shown = [e for e in (*page.data, *page.layout.shapes) if e.showlegend and e.legend == legend]
    return [each.name for each in sorted(shown, key=lambda each: each.legendrank)]


ITEMS = {
    "line": Line(X, [1, 2, NAN, 4], "loss", dash="dot", markers=True, hover=list("abcd")),
    "markers": Line(X, [1, 2, NAN, 4], width=0, markers=True),
    "no value": Line(X, [NAN] * 4, "nothing"),
    "band": Band(X, [1, 1, NAN, 1], [2, 3, 4, 5], "10–90 %"),
    "span": Span(0.5, 5, "range"),
    "mark": Mark(2, "suggested: $2 and $3"),
    "interval": Interval(["a", "b"], [1, NAN], [2, NAN], [1.5, 3], "runs"),
    "no interval": Interval([], [], []),
    "heatmap": Heatmap([[1, NAN], [INF, 4]], ["a", "b"], ["c", "d"], "loss"),
    "no cell has a value": Heatmap([[NAN, NAN]], ["a", "b"], ["c"]),
    "bars": Bars(["a", "b"], [1, 2], [0.5, 1], [1.5, 2.5], name="_share"),
    "long names": Bars([f"a name that is rather long {k}" for k in range(6)], range(6), name="n"),
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ITEMS)
def test_every_item_is_drawn_twice(name, log, tmp_path):
    names_on_x = isinstance(ITEMS[name], Heatmap | Bars)
    chart = Chart("A chart", (panel(ITEMS[name], xlog=log and not names_on_x),))
    file = io.BytesIO()
    chart.figure().savefig(file)
    file.seek(0)
    assert matplotlib.image.imread(file)[..., :3].std() > 0.01
    page = write_page(chart.page(), tmp_path / "chart.html")
    text = page.read_text(encoding="utf-8")
    assert "A chart" in text
    assert "<script src=" not in text  # nothing is fetched when the page is opened


class TestLine:
    def test_both_renderings_have_its_points_and_keep_the_gap(self):
        line = Line(X, [1, 2, NAN, 4], "loss", hover=list("abcd"))
        (drawn,) = axes_of(line).get_lines()
        (trace,) = page_of(line).data
        for x, y in ((drawn.get_xdata(), drawn.get_ydata()), (trace.x, trace.y)):
            np.testing.assert_array_equal(x, X)
            np.testing.assert_array_equal(y, [1, 2, NAN, 4])
        assert not trace.connectgaps
        assert trace.text == ("a", "b", "c", "d")
        assert "x %{x" in trace.hovertemplate
        assert "%{text}" in trace.hovertemplate

    def test_without_width_there_are_markers_alone(self):
        line = Line(X, X, width=0, markers=True)
        (drawn,) = axes_of(line).get_lines()
        assert (drawn.get_linestyle(), drawn.get_marker()) == ("None", "o")
        assert page_of(line).data[0].mode == "markers"

    def test_its_values_cannot_be_changed(self):
        with pytest.raises(ValueError, match="read-only"):
            Line(X, X).y[0] = 3


class TestBand:
    BAND = Band([1, 2, 3, 4, 5], [0, 0, NAN, 1, 1], [1, 1, 9, 2, INF], "quantiles")

    def test_only_stretches_with_two_finite_sides_are_filled(self):
        (drawn,) = axes_of(self.BAND).collections
        vertices = np.concatenate([path.vertices for path in drawn.get_paths()])
        assert vertices[:, 0].min() == 1
        assert vertices[:, 0].max() <= 4  # the gap at 3, infinite at 5
        assert not ((vertices[:, 0] > 2) & (vertices[:, 0] < 4)).any()

    def test_the_page_goes_around_each_stretch(self):
        (trace,) = page_of(self.BAND).data
        assert trace.fill == "toself"
        np.testing.assert_array_equal(trace.x[:6], [1, 2, 2, 1, 1, NAN])
        np.testing.assert_array_equal(trace.y[:6], [0, 0, 1, 1, 0, NAN])
        np.testing.assert_array_equal(trace.x[6:], [4, 4, 4, NAN])
        np.testing.assert_array_equal(trace.y[6:], [1, 2, 1, NAN])
        assert trace.text[0] == "0 to 1"

    def test_an_explosion_stays_where_the_page_can_draw_it(self):
        (trace,) = page_of(Band([1, 2], [0, 0], [1, 1e300]), ylim=(0, 2)).data
        assert 2 < np.nanmax(trace.y) < 1e6
        assert "0 to 1e+300" in trace.text


class TestSpanAndMark:
    def test_they_reach_from_bottom_to_top_in_both(self):
        items = (Span(0.5, 5, "range"), Mark(2, "chosen"))
        axes = axes_of(*items)
        axes.figure.draw_without_rendering()
        assert axes.patches[0].get_window_extent().height == pytest.approx(axes.bbox.height)
        assert axes.patches[0].get_x() == 0.5
        assert axes.patches[0].get_width() == 4.5
        assert list(axes.get_lines()[0].get_xdata()) == [2, 2]
        assert list(axes.get_lines()[0].get_ydata()) == [0, 1]
        span, mark = page_of(*items).layout.shapes
        assert (span.x0, span.x1, mark.x0, mark.x1) == (0.5, 5, 2, 2)
        for shape in (span, mark):
            assert (shape.y0, shape.y1, shape.yref) == (0, 1, "y domain")

    def test_both_legends_name_them(self):
        items = (Mark(2, "chosen"), Span(0.5, 5, "range"), Mark(3))
        assert legend_of(axes_of(*items)) == ["chosen", "range"]
        assert entries_of(page_of(*items)) == ["chosen", "range"]


class TestInterval:
    def test_rows_are_shared_by_label_and_stand_from_top_to_bottom(self):
        first = Interval(["a", "b"], [1, 2], [3, 4], [2, 3], "first")
        second = Interval(["b", "c"], [5, NAN], [6, NAN], name="second")
        axes = axes_of(first, second)
        assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c"]
        bottom, top = axes.get_ylim()
        assert bottom > top
        bars = [[segment.tolist() for segment in c.get_segments()] for c in axes.collections]
        # Two items: each a row of 0.4, its centre 0.2 above or below that of the label.
        expected = [[[[1, -0.2], [3, -0.2]], [[2, 0.8], [4, 0.8]]], [[[5, 1.2], [6, 1.2]]]]
        assert np.allclose(bars[0], expected[0])
        assert np.allclose(bars[1], expected[1])
        page = page_of(first, second)
        assert page.layout.yaxis.ticktext == ("a", "b", "c")
        assert page.layout.yaxis.range == (2.5, -0.5)
        bar, dots, other = page.data
        np.testing.assert_array_equal(bar.x, [1, 3, NAN, 2, 4, NAN])
        np.testing.assert_allclose(bar.y, [-0.2] * 3 + [0.8] * 3)
        assert list(dots.x) == [2, 3]
        np.testing.assert_array_equal(other.x, [5, 6, NAN])

    def test_marks_and_spans_may_stand_beside(self):
        items = (Interval(["a"], [1], [2], name="runs"), Span(1, 2, "range"), Mark(3, "published"))
        assert legend_of(axes_of(*items)) == ["runs", "range", "published"]


class TestHeatmap:
    def test_values_limits_and_labels(self):
        z = [[0.25, 1], [NAN, 4], [2, 3]]
        item = Heatmap(z, ["A", "B"], ["r", "s", "t"], "overlap", high=8)
        axes = axes_of(item)
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array().filled(NAN), z)
        assert image.get_clim() == (0.25, 8)
        assert axes.get_ylim() == (2.5, -0.5)  # the first row on top
        assert [text.get_text() for text in axes.get_xticklabels()] == ["A", "B"]
        assert [text.get_text() for text in axes.texts] == ["0.25", "1", "", "4", "2", "3"]
        assert axes.figure.axes[1].get_ylabel() == "overlap"
        page = page_of(item)
        heat, texts = page.data
        np.testing.assert_array_equal(heat.z, z)
        assert (heat.zmin, heat.zmax) == (0.25, 8)
        assert page.layout.yaxis.range == (2.5, -0.5)
        assert texts.text == ("0.25", "1", "", "4", "2", "3")
        assert list(texts.y) == [0, 0, 1, 1, 2, 2]

    def test_more_than_a_hundred_cells_are_not_written_in(self):
        names = [str(k) for k in range(101)]
        hundred, more = Heatmap(np.ones((1, 100)), names[:100], ["r"]), Heatmap([names], names, [1])
        assert len(axes_of(hundred).texts) == 100
        assert len(axes_of(more).texts) == 0
        assert len(page_of(more).data) == 1

    def test_a_cell_can_hold_a_text(self):
        item = Heatmap([[0.2, NAN]], ["A", "B"], ["A"], texts=[["0.20", "diverged"]])
        assert [text.get_text() for text in axes_of(item).texts] == ["0.20", "diverged"]
        assert page_of(item).data[1].text == ("0.20", "diverged")


class TestBars:
    def test_heights_and_error_bars(self):
        item = Bars(["a", "b"], [1, 2], [0.5, 1], [4, 2.5])
        axes = axes_of(item)
        assert [patch.get_height() for patch in axes.patches] == [1, 2]
        (whiskers,) = axes.collections
        assert [s[:, 1].tolist() for s in whiskers.get_segments()] == [[0.5, 4], [1, 2.5]]
        (bar,) = page_of(item).data
        assert list(bar.y) == [1, 2]
        assert list(bar.error_y.array) == [3, 0.5]
        assert list(bar.error_y.arrayminus) == [0.5, 1]

    def test_on_a_log_axis_they_reach_its_bottom(self):
        axes = axes_of(Bars(["a", "b"], [1, 100]), ylog=True)
        file = io.BytesIO()
        axes.figure.savefig(file)
        file.seek(0)
        x, y = axes.transAxes.transform((0.75, 0.02)).astype(int)
        assert to_hex(matplotlib.image.imread(file)[-y, x]) == PALETTE[0]

    def test_equal_labels_stand_side_by_side(self):
        axes = axes_of(Bars(["a", "b"], [1, 2], name="first"), Bars(["a", "b"], [3, 4]))
        sides = sorted((p.get_x(), p.get_x() + p.get_width()) for p in axes.patches)
        assert len(sides) == 4
        assert all(right < left for (_, right), (left, _) in pairwise(sides))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Line([1, 2], [1]), "one length"),
        (lambda: Line(["a"], [1]), "x cannot be drawn"),
        (lambda: Line(X, X, dash="dashed"), "'dashed' is not one of"),
        (lambda: Line(X, X, color="reddish"), "'reddish' is not a colour"),
        (lambda: Line(X, X, hover=["a"]), "1 hover texts for 4 points"),
        (lambda: Line(X, X, opacity=0), "opacity=0"),
        (lambda: Band(X, X, X[:2]), "one length"),
        (lambda: Span(2, 1), "span from 2 to 1"),
        (lambda: Span(1, INF), "span from 1 to inf"),
        (lambda: Mark(NAN), "mark at nan"),
        (lambda: Interval(["a"], [1, 2], [3, 4]), "1 labels for 2 values"),
        (lambda: Interval(["a", "a"], [1, 2], [3, 4]), "['a'] occur more than once"),
        (lambda: Interval(["a", "b"], [1, 5], [3, 4]), "low is above high at index [1]"),
        (lambda: Heatmap([1, 2], ["a"], ["b"]), "give a matrix"),
        (lambda: Heatmap([[1, 2]], ["a"], ["b"]), "1 labels for 2 values"),
        (lambda: Heatmap([[1]], ["a"], ["b"], texts=[["1", "2"]]), "one text per cell"),
        (lambda: Bars(["a"], [1], low=[0]), "has one end"),
        (lambda: Bars(["a"], [1], [2], [3]), "low is above values"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(make, match):
    with pytest.raises(LRRTError, match=re.escape(match)) as raised:
        make()
    assert "\n" not in str(raised.value)
