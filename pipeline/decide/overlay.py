"""Range tests on the same axes: their curves, and below them their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage import Reading
from lrrt_stage.plots.curve_plot import LR_LABEL
from lrrt_stage.plots.style import (
    COLORS,
    ORANGE,
    PALE,
    VERMILION,
    finished,
    label_axes,
    legend_below,
    loss_limits,
    name_rows,
    new_figure,
    plot_bars,
)
from lrrt_stage.settings import require

__all__ = ["overlay_figure", "plot_losses", "plot_ranges"]

STYLES = ("-", "--", "-.", ":")


def overlay_figure(
    title: str, readings: Mapping[str, Reading], lr_in_use: float | None = None
) -> Figure:
    """Return the losses of range tests over the learning rate, and below them their ranges.

    Raises
    ------
    LRRTError
        If there is no test.
    """
    require(bool(readings), "there is no range test to draw: give at least one")
    figure, (losses, ranges) = new_figure(rows=2, height=3.6)
    figure.set_figheight(3.9 + 1.2 + 0.3 * len(readings))
    figure.axes[0].get_gridspec().set_height_ratios([3.9, 1.2 + 0.3 * len(readings)])
    plot_losses(readings, losses)
    plot_ranges(readings, ranges)
    ranges.sharex(losses)
    for ax in (losses, ranges):
        if lr_in_use is not None:
            label = f"learning rate in use: {lr_in_use:.3g}"
            ax.axvline(lr_in_use, color=VERMILION, lw=1.5, ls="--", label=label)
        legend_below(ax)
    return finished(figure, title)


def plot_losses(readings: Mapping[str, Reading], ax: Axes) -> Axes:
    """Draw the losses of the probe where all tests have one, else the smoothed training losses."""
    probed = all(reading.curve.probe_loss is not None for reading in readings.values())
    losses, styles = [], cycle((style, color) for style in STYLES for color in COLORS)
    for (name, reading), (style, color) in zip(readings.items(), styles, strict=False):
        curve = reading.curve.finite
        loss = curve.probe_loss if probed else reading.smoothing(curve.loss)
        assert loss is not None
        losses.append(loss)
        # A label that begins with an underline would be left out of the legend.
        label = f" {name}" if name.startswith("_") else name
        ax.plot(curve.lr, loss, color=color, ls=style, lw=1.8, label=label)
    title = "Loss of the probe" if probed else "Smoothed training loss"
    label_axes(ax, title, LR_LABEL, "loss", log="x")
    ax.set_ylim(*loss_limits(*losses))
    return ax


def plot_ranges(readings: Mapping[str, Reading], ax: Axes) -> Axes:
    """Draw the suggested ranges, and the intervals of their maxima, a row for each test."""
    nothing = float("nan")
    found = [reading.final for reading in readings.values()]
    low = [suggestion.range.min if suggestion.range else nothing for suggestion in found]
    high = [suggestion.range.max if suggestion.range else nothing for suggestion in found]
    least = [suggestion.confidence.low for suggestion in found]
    most = [suggestion.confidence.high for suggestion in found]
    plot_bars(ax, low, high, color=PALE, width=9, label="suggested range")
    plot_bars(ax, least, most, color=ORANGE, label="interval of its maximum")
    ax.plot(high, range(len(found)), "|", color="black", ms=12, mew=2, label="its maximum")
    label_axes(ax, "Suggested ranges", LR_LABEL, log="x")
    name_rows(ax, list(readings))
    return ax
