"""Pictures of a range test that need no caption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.ticker
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage.curve import LRCurve
from lrrt_stage.errors import NoSuggestion
from lrrt_stage.smoothing import Smoothing
from lrrt_stage.suggestion import LRRange

__all__ = ["curve_axes", "curve_figure", "curve_page", "write_page"]

Answers = Mapping[str, LRRange | NoSuggestion]

RAW, SMOOTHED, SHADE = "#9db4c8", "#1f4e79", "#f2a541"
MARKS = ("#c0392b", "#27865f", "#7d3c98", "#b9770e", "#2471a3", "#555555")


def curve_axes(
    axes: Axes,
    curve: LRCurve,
    answers: Answers,
    rule: str,
    smoothing: Smoothing | None = None,
) -> None:
    """Draw the curve: log axis, raw and smoothed loss, chosen range shaded, every rule marked."""
    smoothing = smoothing or Smoothing()
    axes.plot(curve.lr, curve.loss, color=RAW, lw=1, label="loss of each batch")
    axes.plot(
        curve.lr, smoothing(curve.loss), color=SMOOTHED, lw=2, label=_smoothed_name(smoothing)
    )
    if curve.val_loss is not None:
        axes.plot(curve.lr, curve.val_loss, color="#555555", lw=1, ls=":", label="validation loss")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=_limits(curve))
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=10, numticks=12))
    chosen = answers.get(rule)
    if isinstance(chosen, LRRange):
        label = f"suggested range ({rule}): {chosen}"
        axes.axvspan(chosen.min, chosen.max, color=SHADE, alpha=0.25, lw=0, label=label)
    for label, lr, color in _marks(answers):
        axes.axvline(lr, color=color, lw=1.2, ls="--", label=label)
    axes.set_title(_title(curve), fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower left", framealpha=0.9)


def curve_figure(
    curve: LRCurve, answers: Answers, rule: str, smoothing: Smoothing | None = None
) -> Figure:
    """Return :func:`curve_axes` as a figure of its own, 9 by 5.5 inches."""
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    curve_axes(figure.subplots(), curve, answers, rule, smoothing)
    return figure


def curve_page(
    curve: LRCurve, answers: Answers, rule: str, smoothing: Smoothing | None = None
) -> go.Figure:
    """Return the same picture as an interactive plotly figure."""
    smoothing = smoothing or Smoothing()
    lines = [
        ("loss of each batch", curve.loss, RAW, 1),
        (_smoothed_name(smoothing), smoothing(curve.loss), SMOOTHED, 2.5),
    ]
    if curve.val_loss is not None:
        lines.append(("validation loss", curve.val_loss, "#555555", 1))
    page = go.Figure()
    iterations = np.arange(len(curve))
    for name, values, color, width in lines:
        page.add_scatter(
            x=curve.lr,
            y=values,
            name=name,
            customdata=iterations,
            line={"color": color, "width": width},
            hovertemplate="lr %{x:.3g}<br>loss %{y:.4g}<br>iteration %{customdata}",
        )
    chosen = answers.get(rule)
    if isinstance(chosen, LRRange):
        page.add_vrect(x0=chosen.min, x1=chosen.max, fillcolor=SHADE, opacity=0.25, line_width=0)
    low, high = _limits(curve)
    for label, lr, color in _marks(answers):
        page.add_scatter(
            x=[lr, lr],
            y=[low, high],
            mode="lines",
            name=label,
            line={"color": color, "dash": "dash", "width": 1.2},
        )
    page.update_xaxes(type="log", title="learning rate", exponentformat="power")
    page.update_yaxes(title="training loss", range=[low, high])
    shaded = f"<br>shaded: {rule}, {chosen}" if isinstance(chosen, LRRange) else ""
    page.update_layout(title=_title(curve) + shaded, template="plotly_white")
    return page


def write_page(page: go.Figure, path: str | Path) -> Path:
    """Write a page that needs no network: plotly's script (about 5 MB) is inside."""
    page.write_html(path, include_plotlyjs=True)
    return Path(path)


def _marks(answers: Answers) -> list[tuple[str, float, str]]:
    """Return label, learning rate and colour of the rules' answers; equal ones share a mark."""
    names: dict[float, list[str]] = {}
    for name, answer in answers.items():
        if isinstance(answer, LRRange):
            names.setdefault(answer.max, []).append(name)
    return [
        (f"{', '.join(names[lr])}: {lr:.3g}", lr, MARKS[index % len(MARKS)])
        for index, lr in enumerate(names)
    ]


def _title(curve: LRCurve) -> str:
    ends = {
        "completed": "reached the last learning rate",
        "diverged": "stopped: the loss diverged",
        "non-finite": "stopped: the loss was no longer finite",
        "interrupted": "interrupted",
    }
    epochs = "" if curve.epochs is None else f", {curve.epochs:.3g} epochs"
    return f"LR range test: {len(curve)} iterations{epochs}, {ends[curve.stop]}"


def _smoothed_name(smoothing: Smoothing) -> str:
    return f"smoothed ({smoothing.average}, β = {smoothing.beta:g})"


def _limits(curve: LRCurve) -> tuple[float, float]:
    """Return a loss axis that shows the descent; the explosion leaves it at the top."""
    finite = curve.finite.loss
    if not len(finite):
        return 0.0, 1.0
    low, start = float(finite.min()), float(np.median(finite[: max(1, len(finite) // 4)]))
    height = max(start - low, 1e-3 * abs(start), 1e-12)
    return low - 0.15 * height, start + 0.75 * height
