import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lrrt_stage import LRRTError
from lrrt_stage.charts import PALETTE, Band, Bars, Chart, Heatmap, Interval, Line, Mark, Panel, Span

X = np.array([0.1, 1.0, 10.0, 100.0])


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


class TestColours:
    def test_items_without_one_get_distinct_ones_equal_in_both_renderings(self):
        lines = [Line(X, X + k, f"line {k}") for k in range(15)]
        items = (*lines[:4], Line(X, X, "mine", color=PALETTE[4]), *lines[4:])
        drawn = [line.get_color() for line in axes_of(*items).get_lines()]
        assert len(set(drawn)) == 16
        assert drawn[:5] == list(PALETTE[:5])
        assert [trace.line.color for trace in page_of(*items).data] == drawn

    def test_of_every_kind_of_item(self):
        items = (Band(X, X, X, "b"), Span(1, 2, "s"), Mark(3, "m"), Line(X, X, color="red"))
        axes, page = axes_of(*items), page_of(*items)
        band, line = page.data
        span, mark = page.layout.shapes
        assert band.fillcolor == to_hex(axes.collections[0].get_facecolor()[0])
        assert span.fillcolor == to_hex(axes.patches[0].get_facecolor())
        assert mark.line.color == axes.get_lines()[0].get_color()
        assert line.line.color == "#ff0000"
        assert len({band.fillcolor, span.fillcolor, mark.line.color, line.line.color}) == 4

    def test_a_name_keeps_its_colour_and_its_one_entry(self):
        one = panel(Line(X, X, "other"), Line(X, X, "run"), Line(X, 2 * X, "run"))
        two = panel(Line(X, X, "third"), Line(X, X, "run"))
        figure = Chart("", (one, two)).figure()
        first, second = ([line.get_color() for line in axes.get_lines()] for axes in figure.axes)
        assert first[1] == first[2] == second[1]
        assert first[0] != first[1]
        assert second[0] != second[1]
        assert [legend_of(axes) for axes in figure.axes] == [["other", "run"], ["third", "run"]]
        page = Chart("", (one, two)).page()
        assert entries_of(page) == ["other", "run"]
        assert entries_of(page, 2) == ["third", "run"]
        _, run, again, *_ = page.data
        assert run.legendgroup == again.legendgroup


class TestLegend:
    EIGHT = panel(
        *(Line(X, X + k, f"the run with batch size {2**k}") for k in range(7)), Mark(3, "in use")
    )

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_eight_entries_cover_nothing_in_the_picture(self, count):
        figure = Chart("A title", (self.EIGHT,) * count).figure()
        figure.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in figure.axes]
        legends = [axes.get_legend().get_window_extent() for axes in figure.axes]
        for index, legend in enumerate(legends):
            assert len(legend_of(figure.axes[index])) == 8
            assert legend.y1 < figure.axes[index].xaxis.get_tightbbox().y0 + 1
            for other in (*boxes, *(legends[:index] + legends[index + 1 :])):
                assert not legend.overlaps(other)
            assert figure.bbox.x0 <= legend.x0
            assert legend.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= legend.y0
        assert all(box.height > 2.2 * figure.dpi for box in boxes)

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_nor_on_the_page(self, count):
        page = Chart("A title", (self.EIGHT,) * count).page()
        layout = page.layout
        inner = layout.height - layout.margin.t - layout.margin.b
        for k in ("", "2", "3", "4")[:count]:
            legend, axes = layout[f"legend{k}"], layout[f"yaxis{k}"]
            assert legend.yanchor == "top"
            assert (axes.domain[0] - legend.y) * inner > 40  # room for tick labels and the title
            below = [
                layout[f"yaxis{j}"].domain[1]
                for j in ("", "2", "3", "4")[:count]
                if layout[f"yaxis{j}"].domain[1] < axes.domain[0]
            ]
            rows = 8 if count > 1 else 2
            assert (legend.y - max(below, default=0)) * inner >= 19 * rows
        assert len(entries_of(page)) == 8

    def test_without_names_or_where_it_is_not_wanted_there_is_none(self):
        assert axes_of(Line(X, X)).get_legend() is None
        assert axes_of(Line(X, X, "loss"), legend=False).get_legend() is None
        assert entries_of(page_of(Line(X, X, "loss"), legend=False)) == []


class TestPanel:
    def test_axes_have_labels_scales_and_limits(self):
        options = {"xlog": True, "ylog": True, "xlim": (0.1, 1000), "ylim": (1, 100)}
        axes = axes_of(Line(X, X), **options)
        assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "x", "y")
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert (axes.get_xlim(), axes.get_ylim()) == ((0.1, 1000), (1, 100))
        layout = page_of(Line(X, X), **options).layout
        assert (layout.xaxis.type, layout.yaxis.type) == ("log", "log")
        # Plotly wants the exponents of a log axis.
        assert layout.xaxis.range == pytest.approx((-1, 3))
        assert layout.yaxis.range == pytest.approx((0, 2))
        assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("x", "y")
        assert layout.annotations[0].text == "title"

    def test_labels_can_stand_at_given_values(self):
        sizes = (16.0, 64.0, 512.0)
        axes = axes_of(Line(sizes, sizes), xlog=True, xticks=sizes)
        axes.figure.draw_without_rendering()
        assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "64", "512"]
        assert not axes.get_xticks(minor=True).size
        axis = page_of(Line(sizes, sizes), xlog=True, xticks=sizes).layout.xaxis
        assert (axis.tickvals, axis.ticktext) == (sizes, ("16", "64", "512"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: panel(Bars(["a"], [1]), Mark(2)), "Bars shares a panel with Mark"),
        (lambda: panel(Interval(["a"], [1], [2]), Line(X, X)), "Interval shares a panel with Line"),
        (lambda: panel(Heatmap([[1]], ["a"], ["b"]), Heatmap([[1]], ["a"], ["b"])), "2 heatmaps"),
        (lambda: panel(Mark(0), xlog=True), "above zero on a log axis"),
        (lambda: panel(Span(-1, 1), xlog=True), "above zero on a log axis"),
        (lambda: panel(ylog=True, ylim=(0, 1)), "ylim (0, 1) cannot be drawn"),
        (lambda: panel(xlim=(1, 1)), "xlim=(1, 1) is empty"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(make, match):
    with pytest.raises(LRRTError, match=re.escape(match)) as raised:
        make()
    assert "\n" not in str(raised.value)
