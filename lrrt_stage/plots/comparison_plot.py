"""Several range tests on the same axes: their losses, and their ranges in rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL
from lrrt_stage.rules.reading import Reading
from lrrt_stage.settings import require

__all__ = ["comparison_figure", "plot_losses", "plot_ranges"]

STYLES = ("-", "--", "-.", ":")


def plot_losses(readings: Mapping[str, Reading], ax: Axes | None = None) -> Axes:
    """Draw the losses of several range tests over the learning rate, a line for each test.

    ``readings`` are named by what the legend calls them. The losses are those of the probe where
    all tests have one, else the smoothed training losses.
    """
    if ax is None:
        return drawing.on_new_figure(plot_losses, readings)
    probed = all(reading.curve.probe_loss is not None for reading in readings.values())
    losses = []
    ax.set_prop_cycle(cycler(linestyle=STYLES) * cycler(color=drawing.COLORS))
    for name, reading in readings.items():
        curve = reading.curve.finite.probed if probed else reading.curve.finite
        loss = curve.probe_loss if probed else reading.smoothing(curve.loss)
        assert loss is not None
        losses.append(loss)
        # A label that begins with an underscore would be left out of the legend.
        label = f" {name}" if name.startswith("_") else name
        ax.plot(curve.lr, loss, lw=1.8, label=label)
    title = "Loss of the probe" if probed else "Smoothed training loss"
    drawing.label_axes(ax, title, LR_LABEL, "loss", log="x")
    ax.set_ylim(*drawing.loss_limits(*losses))
    drawing.legend_below(ax)
    return ax


def plot_ranges(readings: Mapping[str, Reading], ax: Axes | None = None) -> Axes:
    """Draw the suggested ranges, and the intervals of their maxima, a row for each test.

    ``readings`` are named by what their rows are called; a test without a suggestion has an empty
    row.
    """
    if ax is None:
        return drawing.on_new_figure(plot_ranges, readings)
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
    drawing.legend_below(ax)
    return ax


def comparison_figure(
    title: str, readings: Mapping[str, Reading], lr_in_use: float | None = None
) -> Figure:
    """Return the losses of range tests over the learning rate, and below them their ranges."""
    require(bool(readings), "there is no range test to draw: give at least one")
    heights = [3.9, 1.2 + 0.3 * len(readings)]
    figure, (losses, ranges) = drawing.new_figure(heights=heights)
    plot_losses(readings, losses)
    plot_ranges(readings, ranges)
    ranges.sharex(losses)
    if lr_in_use is not None:
        label = f"learning rate in use: {lr_in_use:.3g}"
        for ax in (losses, ranges):
            ax.axvline(lr_in_use, color=drawing.BLACK, lw=1.5, ls="--", label=label)
    return drawing.finished(figure, title)
