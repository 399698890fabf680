"""Panels drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from lrrt_stage.charts.panels import Panel, Placed, axis_names, placed, slanted
from lrrt_stage.charts.series import Band, Bars, Heatmap, Interval, Line, Mark, Span

__all__ = ["draw_panel", "picture"]

DASHES = {"solid": "-", "dash": "--", "dot": ":"}
LETTER, ENTRY, ROW = 0.059, 0.5, 0.19
"""Inches: the width of a letter and of the rest of a legend's entry, the height of its rows."""
GREY = "#dddddd"


def picture(
    title: str, panels: Sequence[Panel], columns: int, width: float, height: float
) -> Figure:
    """Return the panels in rows of ``columns``, each ``width`` by ``height`` inches.

    A row is as much higher as its legends need, which stand below the axes.
    """
    rows = ceil(len(panels) / columns)
    drawn = placed(panels)
    legends = [_legend_rows([each.entry for each in items], width) for items in drawn]
    below = [max(legends[row * columns : (row + 1) * columns]) * ROW for row in range(rows)]
    size = (width * columns, height * rows + sum(below) + (0.4 if title else 0))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, panel, items in zip(grid, panels, drawn, strict=False):
        draw_panel(axes, panel, items)
    for axes in grid[len(panels) :]:
        axes.remove()
    if title:
        figure.suptitle(_plain(title), fontsize=12)
    return figure


def draw_panel(axes: Axes, panel: Panel, items: Sequence[Placed] | None = None) -> None:
    """Draw ``panel`` into ``axes``, its legend below them.

    ``items`` are those that :func:`lrrt_stage.charts.panels.placed` returns for it, by default as
    if it were the only panel.
    """
    items = placed([panel])[0] if items is None else items
    for each in items:
        DRAW[type(each.item)](axes, each, _plain(each.entry) or "_nolegend_")
    axes.set_title(_plain(panel.title), fontsize=10)
    axes.set_xlabel(_plain(panel.xlabel))
    axes.set_ylabel(_plain(panel.ylabel))
    if any(isinstance(each.item, Heatmap) for each in items):
        axes.grid(visible=False)
    else:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _scale(axes, panel)
    _names(axes, panel)
    _legend(axes, panel, [_plain(each.entry) for each in items if each.entry])


def _line(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    style = DASHES[item.dash] if item.width else "none"
    axes.plot(
        item.x,
        item.y,
        color=each.color,
        lw=item.width,
        ls=style,
        marker="o" if item.markers else None,
        ms=4 if item.width else 5,
        alpha=item.opacity,
        label=label,
    )


def _band(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    axes.fill_between(item.x, item.low, item.high, color=each.color, alpha=0.2, lw=0, label=label)


def _span(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    axes.axvspan(item.low, item.high, color=each.color, alpha=item.opacity, lw=0, label=label)


def _mark(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    axes.axvline(item.x, color=each.color, lw=1.2, ls=DASHES[item.dash], label=label)


def _interval(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    finite = np.isfinite(item.low) & np.isfinite(item.high)
    y, low, high = each.positions[finite], item.low[finite], item.high[finite]
    axes.hlines(y, low, high, color=each.color, lw=4, alpha=0.5, label=label)
    if item.mid is not None:
        axes.plot(item.mid, each.positions, "o", ms=5, color=each.color)


def _heatmap(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    low, high = item.limits
    finite = np.ma.masked_invalid(item.z)
    image = axes.imshow(finite, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor(GREY)
    axes.figure.colorbar(image, ax=axes, label=_plain(item.name))
    inks = item.inks
    for row, texts in enumerate(item.cell_texts or []):
        for column, text in enumerate(texts):
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": inks[row][column]}
            axes.text(column, row, _plain(text), **style)


def _bars(axes: Axes, each: Placed, label: str) -> None:
    item: Any = each.item
    axes.bar(each.positions, item.values, width=0.9 * each.thickness, color=each.color, label=label)
    if item.low is not None:
        ends = np.stack([item.values - item.low, item.high - item.values])
        axes.errorbar(
            each.positions, item.values, ends, fmt="none", ecolor="#333333", elinewidth=1, capsize=3
        )


DRAW = {
    Line: _line,
    Band: _band,
    Span: _span,
    Mark: _mark,
    Interval: _interval,
    Heatmap: _heatmap,
    Bars: _bars,
}


def _scale(axes: Axes, panel: Panel) -> None:
    if panel.xlog:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
    if panel.ylog:
        # A bar begins at zero, which a log axis has not.
        bars = any(isinstance(item, Bars) for item in panel.items)
        axes.set_yscale("log", nonpositive="clip" if bars else "mask")
        _log_ticks(axes.yaxis)
    if panel.xticks:
        axes.xaxis.set_major_locator(FixedLocator(panel.xticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.xlim:
        axes.set_xlim(panel.xlim)
    if panel.ylim:
        axes.set_ylim(panel.ylim)


def _log_ticks(axis: Axis) -> None:
    """Label powers of ten, and between them 2 and 5 by that digit where there are few powers."""

    def digit(value: float, _: int | None) -> str:
        low, high = sorted(axis.get_view_interval())
        first = f"{value:e}"[0]
        return first if first in "25" and low > 0 and high < 1000 * low else ""

    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_minor_formatter(FuncFormatter(digit))
    axis.set_tick_params(which="minor", labelsize=7)


def _names(axes: Axes, panel: Panel) -> None:
    along_x, along_y = axis_names(panel)
    if along_x:
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        texts = [_plain(name) for name in along_x]
        style = turned if slanted(along_x) else {}
        axes.set_xticks(range(len(texts)), texts, fontsize=8, **style)
        axes.grid(visible=False, axis="x")
    if along_y:
        axes.set_yticks(range(len(along_y)), [_plain(name) for name in along_y], fontsize=8)
        axes.set_ylim(len(along_y) - 0.5, -0.5)


def _legend(axes: Axes, panel: Panel, entries: Sequence[str]) -> None:
    """Put the legend below the labels of the x axis, where it covers nothing."""
    if not entries:
        return
    figure = axes.figure
    names = axis_names(panel)[0]
    drop = 4.2 * max(map(len, names)) * 0.5 if slanted(names) else 0
    offset = ScaledTranslation(
        0, -(22 + drop + 13 * bool(panel.xlabel)) / 72, figure.dpi_scale_trans
    )
    axes.legend(
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + offset,
        borderaxespad=0,
        frameon=False,
        ncols=_legend_columns(entries, axes.get_window_extent().width / figure.dpi),
    )


def _legend_columns(entries: Sequence[str], width: float) -> int:
    """Return how many columns of entries fit into ``width`` inches."""
    return max(1, int(width / (LETTER * max(map(len, entries)) + ENTRY)))


def _legend_rows(entries: Sequence[str], width: float) -> int:
    entries = [entry for entry in entries if entry]
    return ceil(len(entries) / _legend_columns(entries, 0.7 * width)) if entries else 0


def _plain(text: str) -> str:
    """Return the text so that matplotlib shows it as it is.

    A dollar sign would begin a formula, and an underline in front would keep it from the legend.
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
