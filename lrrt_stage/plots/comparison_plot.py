"""Several range tests on the same axes: their losses, and their ranges in rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes

from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL
from lrrt_stage.rules.reading import Reading

__all__ = ["plot_losses", "plot_ranges"]

STYLES = ("-", "--", "-.", ":")


def plot_losses(readings: Mapping[str, Reading], ax: Axes | None = None) -> Axes:
    """Draw the losses of the probe where all tests have one, else the smoothed training losses."""
    ax = drawing.new_figure()[1][0] if ax is None else ax
    probed = all(reading.curve.probe_loss is not None for reading in readings.values())
    losses, styles = [], cycle((style, color) for style in STYLES for color in drawing.COLORS)
    for (name, reading), (style, color) in zip(readings.items(), styles, strict=False):
        curve = reading.curve.finite
        loss = curve.probe_loss if probed else reading.smoothing(curve.loss)
        assert loss is not None
        losses.append(loss)
        # A label that begins with an underscore would be left out of the legend.
        label = f" {name}" if name.startswith("_") else name
        ax.plot(curve.lr, loss, color=color, ls=style, lw=1.8, label=label)
    title = "Loss of the probe" if probed else "Smoothed training loss"
    drawing.label_axes(ax, title, LR_LABEL, "loss", log="x")
    ax.set_ylim(*drawing.loss_limits(*losses))
    return ax


def plot_ranges(readings: Mapping[str, Reading], ax: Axes | None = None) -> Axes:
    """Draw the suggested ranges, and the intervals of their maxima, a row for each test."""
    ax = drawing.new_figure()[1][0] if ax is None else ax
    found = [reading.final for reading in readings.values()]
    ranges = np.array([
        (suggestion.range.min, suggestion.range.max) if suggestion.range else (np.nan, np.nan)
        for suggestion in found
    ])  # fmt: skip
    intervals = [(suggestion.confidence.low, suggestion.confidence.high) for suggestion in found]
    drawing.plot_bars(ax, ranges, color=drawing.PALE, width=9, label="suggested range")
    drawing.plot_bars(
        ax, np.array(intervals), color=drawing.ORANGE, label="interval of its maximum"
    )
    rows = range(len(found))
    ax.plot(ranges[:, 1], rows, "|", color="black", ms=11, mew=2, label="its maximum")
    drawing.label_axes(ax, "Suggested ranges", LR_LABEL, log="x")
    drawing.name_rows(ax, list(readings))
    return ax
