"""A chart described once, as values, and drawn twice: as a picture and as a page.

>>> import numpy as np
>>> lr = np.geomspace(1e-5, 1, 50)
>>> line = Line(lr, 1 / (1 + 100 * lr), "loss")
>>> panel = Panel("A descent", "learning rate", "loss", (line, Mark(0.01, "half")), xlog=True)
>>> chart = Chart("Example", (panel,))
>>> chart.figure().savefig("chart.png")                          # doctest: +SKIP
>>> write_page(chart.page(), "chart.html")                       # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from lrrt_stage.charts import pages, pictures
from lrrt_stage.charts.panels import Panel
from lrrt_stage.settings import require

__all__ = ["Chart", "limits"]

DOTS = 110
"""Pixels of the page per inch of the picture."""


@dataclass(frozen=True)
class Chart:
    """Panels under one title, in rows of ``columns`` (default: two, or one for a single panel).

    ``height`` is that of a row in inches, without its legends; a row is made higher for them.
    """

    title: str
    panels: tuple[Panel, ...]
    columns: int | None = None
    height: float = 4.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "panels", tuple(self.panels))
        require(bool(self.panels), "a chart without panels shows nothing: give at least one")
        require(self.columns is None or self.columns > 0, f"columns={self.columns}: give 1 or more")
        require(self.height > 0, f"height={self.height}: give inches above zero")

    @property
    def _columns(self) -> int:
        return min(self.columns or 2, len(self.panels))

    def figure(self) -> Figure:
        """Return the chart drawn by matplotlib, 9 inches wide, or 6.5 per column if it has more."""
        width = 9.0 if self._columns == 1 else 6.5
        return pictures.picture(self.title, self.panels, self._columns, width, self.height)

    def page(self) -> go.Figure:
        """Return the chart drawn by plotly: as wide as the window, with values under the mouse."""
        # Titles and labels of a row take about 0.9 inches of the picture's height.
        height = DOTS * max(self.height - 0.9, 1.0)
        return pages.page(self.title, self.panels, self._columns, height)


def limits(*losses: np.ndarray) -> tuple[float, float]:
    """Return the ends of a loss axis that shows every plateau and every descent.

    Each array ``[n]`` holds the losses of one curve in the order of their iterations; what is not
    finite is passed over. The axis reaches from below the smallest loss to above the highest
    start of a curve, by 15 % and 75 % of the distance between them, so that a loss that explodes
    leaves it at the top and does not flatten the rest. A curve's start is the median of its first
    quarter, or of its first three losses where that is higher. Without finite losses it is 0 to 1.
    """
    finite = [
        values[np.isfinite(values)] for values in (np.asarray(each, float) for each in losses)
    ]
    finite = [values for values in finite if values.size]
    if not finite:
        return 0.0, 1.0
    low = min(float(values.min()) for values in finite)
    start = max(
        float(np.median(values[:count]))
        for values in finite
        for count in (3, max(1, len(values) // 4))
    )
    height = max(start - low, 1e-3 * abs(start), 1e-12)
    return low - 0.15 * height, start + 0.75 * height
