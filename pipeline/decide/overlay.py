"""Range tests over each other: their curves, and below them their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrrt_stage import Confidence, LRCurve, LRRange, Smoothing
from lrrt_stage.charts import Chart, Interval, Item, Line, Mark, Panel, limits
from lrrt_stage.settings import require

__all__ = ["Overlaid", "overlay_chart"]

RANGE, MAXIMUM, IN_USE = "#9db4c8", "#1f4e79", "#c0392b"


@dataclass(frozen=True)
class Overlaid:
    """A range test among others: its name in the chart, its curve, and what was read from it."""

    name: str
    curve: LRCurve
    smoothing: Smoothing
    range: LRRange | None = None
    confidence: Confidence | None = None


def overlay_chart(title: str, tests: Sequence[Overlaid], lr_in_use: float | None = None) -> Chart:
    """Return a chart of the losses of ``tests`` over the learning rate, and of their ranges.

    The losses are those of the probe where all tests have one, else the smoothed training losses.

    Raises
    ------
    LRRTError
        If two tests have the same name, or there is none.
    """
    require(bool(tests), "there is no range test to draw: give at least one")
    probed = all(test.curve.probe_loss is not None for test in tests)
    lines = [_line(test, probed) for test in tests]
    marks: list[Item] = []
    if lr_in_use is not None:
        marks = [Mark(lr_in_use, f"learning rate in use: {lr_in_use:.3g}", IN_USE)]
    every = np.concatenate([line.x for line in lines])
    xlim = (float(every.min(initial=np.inf)), float(every.max(initial=0)))
    losses = Panel(
        "Loss of the probe" if probed else "Smoothed training loss",
        "learning rate",
        "loss",
        (*lines, *marks),
        xlog=True,
        xlim=xlim,
        ylim=limits(*(line.y for line in lines)),
    )
    ranges = Panel(
        "Suggested ranges",
        "learning rate",
        "",
        (*_rows(tests), *marks),
        xlog=True,
        xlim=xlim,
    )
    return Chart(title, (losses, ranges), columns=1, height=4.0)


def _line(test: Overlaid, probed: bool) -> Line:
    curve = test.curve.finite
    loss = curve.probe_loss if probed else test.smoothing(curve.loss)
    assert loss is not None
    return Line(curve.lr, loss, test.name, width=1.8)


def _rows(tests: Sequence[Overlaid]) -> list[Interval]:
    """Return the ranges, and the intervals of their maxima, a row for each test."""
    names = [test.name for test in tests]
    low, high, least, most = np.full((4, len(tests)), np.nan)
    for row, test in enumerate(tests):
        if test.range is not None:
            low[row], high[row] = test.range.min, test.range.max
            if test.confidence is not None:
                least[row], most[row] = test.confidence.low, test.confidence.high
    return [
        Interval(names, low, high, None, "suggested range", RANGE),
        Interval(names, least, most, high, "its maximum, with the interval", MAXIMUM),
    ]
