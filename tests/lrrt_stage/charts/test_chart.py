import re

import numpy as np
import pytest

from lrrt_stage import LRRTError
from lrrt_stage.charts import Chart, Line, Panel, limits

X = np.array([0.1, 1.0, 10.0, 100.0])
NAN, INF = np.nan, np.inf


def panel(*items, **options):
    return Panel("title", "x", "y", items, **options)


class TestChart:
    @pytest.mark.parametrize(
        ("columns", "count", "expected"),
        [(None, 1, (1, 1)), (None, 5, (3, 2)), (1, 3, (3, 1)), (3, 2, (1, 2)), (3, 4, (2, 3))],
    )
    def test_panels_stand_in_rows(self, columns, count, expected):
        rows, width = expected
        chart = Chart("", (panel(Line(X, X)),) * count, columns=columns)
        figure = chart.figure()
        assert len(figure.axes) == count
        places = [axes.get_subplotspec() for axes in figure.axes]
        assert places[0].get_gridspec().get_geometry() == (rows, width)
        assert [(p.rowspan.start, p.colspan.start) for p in places] == [
            divmod(k, width) for k in range(count)
        ]
        page = chart.page()
        domains = [
            (page.layout[f"xaxis{k}"].domain, page.layout[f"yaxis{k}"].domain)
            for k in ("", *range(2, count + 1))
        ]
        for k, (x, y) in enumerate(domains):
            row, column = divmod(k, width)
            assert column / width < x[0] < x[1] < (column + 1) / width
            assert 0 < y[0] < y[1] < 1
            if column:
                assert y == domains[k - 1][1]
            if row:
                assert y[1] < domains[k - width][1][0]

    def test_height_is_that_of_a_row(self):
        one, two = (Chart("", (panel(Line(X, X)),) * k, columns=1, height=3) for k in (1, 2))
        assert one.figure().get_size_inches().tolist() == [9, 3]
        assert two.figure().get_size_inches().tolist() == [9, 6]
        assert one.page().layout.height < two.page().layout.height


class TestLimits:
    def test_of_a_descent_and_an_explosion(self):
        # From 4 down to 0: 15 % of the four below, 75 % above; what explodes is not looked at.
        assert limits([4, 4, 4, 4, 2, 0, 1e30, NAN]) == pytest.approx((-0.6, 7))

    def test_many_curves_are_all_seen(self):
        curves = ([4, 4, 4, 4, 3, 2, 2, 2], [3, 3, 3, 3, 2, 1, 0, 0], [NAN, NAN], [])
        assert limits(*curves) == pytest.approx((-0.6, 7))

    def test_a_curve_that_falls_at_once_is_seen_from_its_start(self):
        falling = np.concatenate([[5, 5], np.ones(38), [0] * 8])
        low, high = limits(falling)
        assert low == pytest.approx(-0.75)
        assert high == pytest.approx(5 + 0.75 * 5)

    def test_gaps_do_not_count(self):
        assert limits([NAN, 4, NAN, 4, INF, 0, NAN]) == limits([4, 4, 0])

    @pytest.mark.parametrize("curves", [(), ([],), ([NAN, INF],)])
    def test_without_a_finite_loss(self, curves):
        assert limits(*curves) == (0, 1)

    def test_a_flat_curve_has_some_height(self):
        low, high = limits(np.full(10, 2.3))
        assert low < 2.3 < high


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Chart("", ()), "at least one"),
        (lambda: Chart("", (panel(),), columns=0), "columns=0"),
        (lambda: Chart("", (panel(),), height=0), "height=0"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(make, match):
    with pytest.raises(LRRTError, match=re.escape(match)) as raised:
        make()
    assert "\n" not in str(raised.value)
