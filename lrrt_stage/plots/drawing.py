"""What all figures share: colours, axes, legends, rows of ranges, and their form in HTML."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogFormatter, LogLocator
from matplotlib.transforms import offset_copy

from lrrt_stage.files import replacing

__all__ = [
    "COLORS",
    "finished",
    "label_axes",
    "legend_below",
    "loss_limits",
    "name_rows",
    "new_figure",
    "on_new_figure",
    "plot_bars",
    "save_figure",
    "svg_image",
    "to_svg",
]

BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
PURPLE, SKY, BLACK = "#cc79a7", "#56b4e9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Colours that can be told apart with every common colour blindness (Okabe & Ito 2008)."""
PALE, GREY = "#aebccb", "#6b6b6b"
FONT = 9


def new_figure(
    heights: Sequence[float] = (4.2,), columns: int = 1, width: float = 7.5
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row, of these heights and this width in inches."""
    figure = Figure(figsize=(width * columns, sum(heights)), dpi=120, layout="constrained")
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    return figure, grid.ravel().tolist()


def finished(figure: Figure, title: str = "") -> Figure:
    """Return the figure with a title, and as much higher as its legends need.

    The legends of several axes are made anew, with what was drawn after them.
    """
    if len(figure.axes) > 1:
        # They share the width, with names of rows for example: it is found by drawing.
        figure.draw_without_rendering()
        for ax in figure.axes:
            if ax.get_legend() is not None:
                legend_below(ax)
    heights: dict[int, float] = {}
    for ax in figure.axes:
        legend, place = ax.get_legend(), ax.get_subplotspec()
        if legend is not None and place is not None:
            height = legend.get_window_extent().height / figure.dpi
            heights[place.rowspan.start] = max(heights.get(place.rowspan.start, 0), height)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False)
    figure.set_figheight(figure.get_figheight() + sum(heights.values()) + 0.3 * bool(title))
    return figure


def label_axes(
    ax: Axes, title: str, xlabel: str, ylabel: str = "", *, log: str = "", grid: str = "both"
) -> None:
    """Set the texts of the axes, and make those named in ``log`` ("x", "y", "xy") logarithmic."""
    ax.set_title(title, fontsize=10.5, parse_math=False)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_axisbelow(True)
    ax.margins(x=0.02)
    ax.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    ax.spines[["top", "right"]].set_visible(False)
    for name in log:
        axis: Axis = getattr(ax, f"{name}axis")
        ax.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(base=10, numticks=12))
        # Formulas, as by default, would take most of the time of a figure.
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        axis.set_tick_params(which="minor", labelsize=7)


def loss_limits(*losses: np.ndarray) -> tuple[float, float]:
    """Return the ends of a loss axis that shows every plateau and every descent.

    Each array ``[n]`` holds the losses of one curve in the order of their iterations; values that
    are not finite are ignored. The axis reaches from below the smallest loss to above the highest
    start of a curve, by 15 % and 75 % of the distance between them, so that a loss that explodes
    leaves it at the top and does not flatten the rest. A curve's start is the median of its first
    quarter, or of its first three losses where that is higher. Without finite losses it is 0 to 1.
    """
    finite = [loss[np.isfinite(loss)] for loss in losses]
    finite = [loss for loss in finite if loss.size]
    if not finite:
        return 0.0, 1.0
    low = min(float(loss.min()) for loss in finite)
    start = max(
        float(np.median(loss[:count])) for loss in finite for count in (3, max(1, len(loss) // 4))
    )
    height = max(start - low, 1e-3 * abs(start), 1e-12)
    return low - 0.15 * height, start + 0.75 * height


def legend_below(ax: Axes) -> None:
    """Put a legend below the labels of the x axis, where it covers nothing."""
    handles, figure = ax.get_legend_handles_labels()[0], ax.get_figure(root=True)
    assert figure is not None
    below = offset_copy(ax.transAxes, figure, y=-38 if ax.get_xlabel() else -24, units="points")
    # As many columns as fit. Axes that are alone get most of the width when they are laid out.
    alone = len(figure.axes) == 1 and figure.get_layout_engine() is not None
    width = 0.88 * figure.bbox.width if alone else ax.bbox.width
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(
            handles=handles,
            fontsize=FONT,
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=below,
            borderaxespad=0,
            frameon=False,
            ncols=columns,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        if legend.get_window_extent().width <= width:
            break


def on_new_figure(plot: Callable[..., Axes], *arguments: Any) -> Axes:
    """Return the axes of a new figure, into which ``plot`` draws, and which fits its legend."""
    figure, (ax,) = new_figure()
    plot(*arguments, ax)
    finished(figure)
    return ax


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows at y = 0, 1, …, the first at the top."""
    ax.set_yticks(range(len(names)), names, fontsize=FONT, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def plot_bars(
    ax: Axes,
    ends: np.ndarray,
    *,
    color: str = BLUE,
    label: str = "",
    width: float = 5,
) -> None:
    """Draw a horizontal bar in each row between its two ``ends [n, 2]``; none where one is NaN."""
    rows = np.arange(len(ends))
    finite = np.isfinite(ends).all(axis=1)
    ax.hlines(rows[finite], *ends[finite].T, color=color, lw=width, label=label)


def svg_image(svg: bytes, alt: str) -> str:
    """Return an SVG file as an ``img`` tag that needs no file, and in which no script runs."""
    return (
        f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,'
        f'{b64encode(svg).decode("ascii")}" style="max-width: 100%; background: white">'
    )


def save_figure(figure: Figure | SubFigure, path: Path, **options: Any) -> None:
    """Write a figure as a file, whose ending says the format; ``options`` are Matplotlib's."""
    with replacing(path) as part:
        figure.get_figure(root=True).savefig(part, **options)


def to_svg(figure: Figure | SubFigure) -> bytes:
    """Return the figure as an SVG file, the same bytes for the same figure."""
    file = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lrrt"}):
        figure.get_figure(root=True).savefig(
            file, format="svg", facecolor="white", metadata={"Date": None}
        )
    return file.getvalue()
