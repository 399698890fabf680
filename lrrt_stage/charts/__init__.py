"""Charts as values, drawn twice: as a picture by matplotlib, and as a page by plotly."""

from lrrt_stage.charts.chart import Chart, limits
from lrrt_stage.charts.pages import write_page
from lrrt_stage.charts.panels import PALETTE, Panel
from lrrt_stage.charts.series import Band, Bars, Heatmap, Interval, Item, Line, Mark, Span

__all__ = [
    "PALETTE",
    "Band",
    "Bars",
    "Chart",
    "Heatmap",
    "Interval",
    "Item",
    "Line",
    "Mark",
    "Panel",
    "Span",
    "limits",
    "write_page",
]
