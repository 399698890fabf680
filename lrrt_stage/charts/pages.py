"""Panels drawn by plotly, as a page that can be zoomed and asked for values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, log10
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from lrrt_stage.charts.panels import Panel, Placed, axis_names, placed, slanted
from lrrt_stage.charts.series import Heatmap
from lrrt_stage.charts.traces import TRACES, Frame

__all__ = ["page", "write_page"]

WIDTH = 1120
"""Pixels that the panels of a row are laid out for; a wider window makes them wider."""
LETTER, ENTRY, ROW = 6.2, 50, 20
"""Pixels: the width of a letter and of the rest of a legend's entry, the height of its rows."""


def page(title: str, panels: Sequence[Panel], columns: int, height: float) -> go.Figure:
    """Return the panels in rows of ``columns``, the axes of each ``height`` pixels high.

    Each panel has a legend of its own below its axes: entries side by side where there is one
    column of panels, else one below the other.
    """
    drawn = placed(panels)
    head = 34 if any(panel.title for panel in panels) else 10
    feet = [_foot(panel, items, columns) for panel, items in zip(panels, drawn, strict=True)]
    starts = range(0, len(panels), columns)
    total = sum(head + height + max(feet[start : start + columns]) for start in starts)
    figure, top = go.Figure(), total
    for start in starts:
        top -= head
        for column, k in enumerate(range(start, min(start + columns, len(panels)))):
            x = _sides(panels[k], column, columns)
            legend = top - height - _legend_depth(panels[k])
            frame = Frame(
                panels[k], k + 1, x, ((top - height) / total, top / total), legend / total
            )
            _draw(figure, frame, drawn[k], "h" if columns == 1 else "v")
        top -= height + max(feet[start : start + columns])
    margin = {"l": 10, "r": 20, "t": 60 if title else 10, "b": 10}
    figure.update_layout(
        template="plotly_white",
        barmode="overlay",
        hovermode="closest",
        hoverlabel={"namelength": -1},
        margin=margin,
        height=total + margin["t"] + margin["b"],
        title={"text": title, "x": 0.5, "xanchor": "center"} if title else None,
    )
    return figure


def write_page(page: go.Figure, path: str | Path) -> Path:
    """Write a page that needs no network: plotly's script (about 5 MB) is inside."""
    page.write_html(path, include_plotlyjs=True)
    return Path(path)


def _sides(panel: Panel, column: int, columns: int) -> tuple[float, float]:
    """Return the left and right end of the axes in parts of the page's width."""
    names = axis_names(panel)[1]
    left = 20 + LETTER * max([6, *map(len, names)]) + 20 * bool(panel.ylabel)
    right = 90 if any(isinstance(item, Heatmap) for item in panel.items) else 5
    return column / columns + left / WIDTH, (column + 1) / columns - right / WIDTH


def _legend_depth(panel: Panel) -> float:
    """Return the distance from the x axis down to the legend, in pixels."""
    names = axis_names(panel)[0]
    return 34 + 20 * bool(panel.xlabel) + (3.3 * max(map(len, names)) if slanted(names) else 0)


def _foot(panel: Panel, items: Sequence[Placed], columns: int) -> float:
    """Return the height of labels and legend below the axes, in pixels."""
    entries = [each.entry for each in items if each.entry]
    side_by_side = 1
    if entries and columns == 1:
        side_by_side = max(1, int(0.85 * WIDTH / (LETTER * max(map(len, entries)) + ENTRY)))
    return _legend_depth(panel) + ceil(len(entries) / side_by_side) * ROW + 20


def _draw(figure: go.Figure, frame: Frame, items: Sequence[Placed], orientation: str) -> None:
    for rank, each in enumerate(items, start=1):
        name = each.item.name
        entry = {"name": name, "showlegend": bool(each.entry), "legendrank": rank}
        if name:  # Items of one name are hidden and shown together.
            entry["legendgroup"] = f"{frame.number}: {name}"
        TRACES[type(each.item)](figure, frame, each, entry | {"legend": f"legend{frame.suffix}"})
    legend = {
        "x": frame.x[0],
        "y": frame.legend,
        "yanchor": "top",
        "orientation": orientation,
        "traceorder": "normal",
        "font": {"size": 11},
    }
    figure.update_layout({f"legend{frame.suffix}": legend} | dict(_axes(frame)))
    figure.add_annotation(
        text=frame.panel.title,
        x=sum(frame.x) / 2,
        y=frame.y[1],
        xref="paper",
        yref="paper",
        xanchor="center",
        yanchor="bottom",
        showarrow=False,
        font={"size": 14},
    )


def _axes(frame: Frame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the layout of the x and the y axis with its key."""
    panel = frame.panel
    along = axis_names(panel)
    sides = (
        ("x", "y", frame.x, panel.xlabel, panel.xlog, panel.xlim, along[0]),
        ("y", "x", frame.y, panel.ylabel, panel.ylog, panel.ylim, along[1]),
    )
    for axis, other, domain, label, log, limit, names in sides:
        layout: dict[str, Any] = {
            "domain": domain,
            "anchor": f"{other}{frame.suffix}",
            "title": {"text": label, "standoff": 8},
            "showline": True,
            "linecolor": "#444444",
            "ticks": "outside",
            "zeroline": False,
        }
        if log:
            layout |= {"type": "log", "exponentformat": "power"}
        if limit:
            layout["range"] = [log10(end) for end in limit] if log else list(limit)
        if axis == "x" and panel.xticks:
            texts = [f"{tick:g}" for tick in panel.xticks]
            layout |= {"tickvals": list(panel.xticks), "ticktext": texts}
        if names:
            ends = (-0.5, len(names) - 0.5) if axis == "x" else (len(names) - 0.5, -0.5)
            layout |= {"tickvals": list(range(len(names))), "ticktext": names, "range": ends}
            layout |= {"tickangle": -30 if axis == "x" and slanted(names) else 0}
            layout |= {"showgrid": axis == "y" and not any(along[0])}
        yield f"{axis}axis{frame.suffix}", layout
