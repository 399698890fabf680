"""Items of a panel drawn by plotly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lrrt_stage.charts.panels import Panel, Placed
from lrrt_stage.charts.series import Band, Bars, Heatmap, Interval, Line, Mark, Span

__all__ = ["TRACES", "Frame"]

GREY = "#dddddd"


@dataclass(frozen=True)
class Frame:
    """A panel's number, from 1, and its place on the page, in parts of the page's sides."""

    panel: Panel
    number: int
    x: tuple[float, float]
    y: tuple[float, float]
    legend: float
    """The upper end of its legend."""

    @property
    def suffix(self) -> str:
        """What plotly appends to the names of this panel's axes and legend."""
        return "" if self.number == 1 else str(self.number)

    @property
    def axes(self) -> dict[str, str]:
        """The axes that a trace of this panel names."""
        return {"xaxis": f"x{self.suffix}", "yaxis": f"y{self.suffix}"}

    @property
    def full_height(self) -> dict[str, Any]:
        """Where a shape stands that covers the panel from bottom to top."""
        return {"xref": f"x{self.suffix}", "yref": f"y{self.suffix} domain", "y0": 0, "y1": 1}


def _line(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    texts = {} if item.hover is None else {"text": list(item.hover)}
    figure.add_scatter(
        x=item.x,
        y=item.y,
        mode="+".join(["lines"] * (item.width > 0) + ["markers"] * item.markers) or "none",
        line={"color": each.color, "width": item.width, "dash": item.dash},
        marker={"color": each.color, "size": 6},
        opacity=item.opacity,
        hovertemplate=_hover(frame, "%{x:.4~g}", "%{y:.4~g}", "<br>%{text}" if texts else ""),
        **texts,
        **frame.axes,
        **entry,
    )


def _band(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    """Draw each finite stretch as a polygon: out along its low side, back along its high side."""
    item: Any = each.item
    finite = np.isfinite(item.low) & np.isfinite(item.high) & np.isfinite(item.x)
    low, high = _within_reach(frame.panel, item.low), _within_reach(frame.panel, item.high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(int)))
    x, y, texts = [], [], []
    for start, stop in edges.reshape(-1, 2):
        there = np.arange(start, stop)
        both = np.concatenate([there, there[::-1], there[:1]])
        x += [*item.x[both], np.nan]
        y += [*low[there], *high[there[::-1]], low[start], np.nan]
        texts += [*(f"{item.low[k]:.4g} to {item.high[k]:.4g}" for k in both), ""]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        fill="toself",
        fillcolor=each.color,
        opacity=0.2,
        line={"width": 0, "color": each.color},
        text=texts,
        hoveron="points",
        hovertemplate=_hover(frame, "%{x:.4~g}", "%{text}"),
        **frame.axes,
        **entry,
    )


def _span(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    figure.add_shape(
        type="rect",
        x0=item.low,
        x1=item.high,
        fillcolor=each.color,
        opacity=item.opacity,
        line_width=0,
        layer="below",
        **frame.full_height,
        **entry,
    )


def _mark(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    line = {"color": each.color, "width": 1.5, "dash": item.dash}
    figure.add_shape(type="line", x0=item.x, x1=item.x, line=line, **frame.full_height, **entry)


def _interval(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    finite = np.isfinite(item.low) & np.isfinite(item.high)
    ends = np.stack([item.low, item.high, np.full(len(item.low), np.nan)], axis=1)[finite]
    bars = [f"{low:.4g} to {high:.4g}" for low, high in zip(item.low, item.high, strict=True)]
    figure.add_scatter(
        x=ends.ravel(),
        y=np.repeat(each.positions[finite], 3),
        mode="lines+markers",
        line={"color": each.color, "width": 6},
        marker={"opacity": 0, "size": 8},  # for them plotly leaves room at the axis's ends
        opacity=0.5,
        text=np.repeat([f"{item.labels[k]}<br>{bars[k]}" for k in np.flatnonzero(finite)], 3),
        hovertemplate="%{text}",
        **frame.axes,
        **entry,
    )
    if item.mid is not None:
        figure.add_scatter(
            x=item.mid,
            y=each.positions,
            mode="markers",
            marker={"color": each.color, "size": 8},
            text=[f"{label}<br>{bar}" for label, bar in zip(item.labels, bars, strict=True)],
            hovertemplate="%{text}<br>%{x:.4~g}",
            **frame.axes,
            **(entry | {"showlegend": False}),
        )


def _heatmap(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    low, high = item.limits
    y, height = frame.y[0], frame.y[1] - frame.y[0]
    figure.add_heatmap(
        z=np.where(np.isfinite(item.z), item.z, np.nan),
        text=[[f"{row}, {column}" for column in item.x] for row in item.y],
        zmin=low,
        zmax=high,
        colorscale="Viridis",
        colorbar={"title": {"text": item.name, "side": "right"}, "thickness": 14}
        | {"x": frame.x[1], "y": y, "yanchor": "bottom", "len": height, "outlinewidth": 0},
        hovertemplate="%{text}<br>%{z:.4~g}<extra></extra>",
        **frame.axes,
    )
    figure.add_shape(
        type="rect",
        fillcolor=GREY,
        line_width=0,
        layer="below",
        **(frame.full_height | {"xref": f"x{frame.suffix} domain", "x0": 0, "x1": 1}),
    )
    texts = item.cell_texts
    if texts is not None:
        n, m = item.z.shape
        figure.add_scatter(
            x=np.tile(np.arange(m), n),
            y=np.repeat(np.arange(n), m),
            mode="text",
            text=[text for line in texts for text in line],
            textfont={"color": [ink for line in item.inks for ink in line], "size": 11},
            hoverinfo="skip",
            showlegend=False,
            **frame.axes,
        )


def _bars(figure: go.Figure, frame: Frame, each: Placed, entry: dict[str, Any]) -> None:
    item: Any = each.item
    whiskers: dict[str, Any] = {}
    texts = [
        f"{label}<br>{value:.4g}" for label, value in zip(item.labels, item.values, strict=True)
    ]
    if item.low is not None:
        whiskers = {"array": item.high - item.values, "arrayminus": item.values - item.low}
        whiskers = {
            "error_y": whiskers | {"symmetric": False, "color": "#333333", "thickness": 1.2}
        }
        ends = zip(texts, item.low, item.high, strict=True)
        texts = [f"{text}, {low:.4g} to {high:.4g}" for text, low, high in ends]
    figure.add_bar(
        x=each.positions,
        y=item.values,
        width=0.9 * each.thickness,
        marker_color=each.color,
        hovertext=texts,
        hovertemplate="%{hovertext}",
        **whiskers,
        **frame.axes,
        **entry,
    )


TRACES = {
    Line: _line,
    Band: _band,
    Span: _span,
    Mark: _mark,
    Interval: _interval,
    Heatmap: _heatmap,
    Bars: _bars,
}


def _within_reach(panel: Panel, values: np.ndarray) -> np.ndarray:
    """Return the values, those far outside the axis moved nearer: plotly loses polygons there."""
    if panel.ylim is None or panel.ylog:
        return values
    low, high = min(panel.ylim), max(panel.ylim)
    return np.clip(values, low - 100 * (high - low), high + 100 * (high - low))


def _hover(frame: Frame, x: str, y: str, more: str = "") -> str:
    """Return what the page shows of a point; the trace's name stands beside it."""
    return f"{frame.panel.xlabel} {x}<br>{frame.panel.ylabel} {y}{more}"
