"""Range tests on the same axes: their curves, and below them their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from lrrt_stage import Reading
from lrrt_stage.plots import drawing
from lrrt_stage.plots.comparison_plot import plot_losses, plot_ranges
from lrrt_stage.settings import require

__all__ = ["overlay_figure"]


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
    heights = [3.9, 1.2 + 0.3 * len(readings)]
    figure, (losses, ranges) = drawing.new_figure(heights=heights)
    plot_losses(readings, losses)
    plot_ranges(readings, ranges)
    ranges.sharex(losses)
    for ax in (losses, ranges):
        if lr_in_use is not None:
            label = f"learning rate in use: {lr_in_use:.3g}"
            ax.axvline(lr_in_use, color=drawing.BLACK, lw=1.5, ls="--", label=label)
        drawing.legend_below(ax)
    return drawing.finished(figure, title)
