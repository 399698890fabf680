"""The curve of a range test as a picture and as a page that need no caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage.charts import Chart, Item, Line, Mark, Panel, Span, limits, write_page
from lrrt_stage.charts.pictures import draw_panel
from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion

__all__ = ["curve_axes", "curve_figure", "curve_page", "curve_panel", "write_page"]

Answers = Mapping[str, LRRange | NoSuggestion]

RAW, SMOOTHED, PROBE, VALIDATION = "#9db4c8", "#1f4e79", "#0e8a7d", "#555555"
SHADE = "#f2a541"
HEIGHT = 5.0
MARKS = ("#c0392b", "#27865f", "#7d3c98", "#b9770e", "#2471a3", "#555555")


def curve_panel(
    curve: LRCurve,
    answers: Answers,
    rule: str,
    smoothing: Smoothing | None = None,
    more: Sequence[Item] = (),
) -> Panel:
    """Return the curve as a panel: log axis, raw and smoothed loss, chosen range, every rule.

    The losses of the probe and of validation are in it where the curve has them. ``more`` is drawn
    over all that.
    """
    smoothing = smoothing or Smoothing()
    lines = list(_losses(curve, smoothing))
    chosen = answers.get(rule)
    spans = []
    if isinstance(chosen, LRRange):
        spans = [Span(chosen.min, chosen.max, f"suggested range ({rule}): {chosen}", SHADE)]
    marks = [Mark(lr, label, color) for label, lr, color in _marks(answers)]
    ylabel = "training loss" if len(lines) == 2 else "loss"
    items: tuple[Item, ...] = (*lines, *spans, *marks, *more)
    ylim = limits(*(line.y for line in lines))
    return Panel(_title(curve), "learning rate", ylabel, items, xlog=True, ylim=ylim)


def curve_axes(
    axes: Axes,
    curve: LRCurve,
    answers: Answers,
    rule: str,
    smoothing: Smoothing | None = None,
) -> None:
    """Draw :func:`curve_panel` into ``axes``, the legend below them."""
    draw_panel(axes, curve_panel(curve, answers, rule, smoothing))


def curve_figure(
    curve: LRCurve,
    answers: Answers,
    rule: str,
    smoothing: Smoothing | None = None,
    more: Sequence[Item] = (),
) -> Figure:
    """Return :func:`curve_panel` as a picture, 9 inches wide."""
    return Chart("", (curve_panel(curve, answers, rule, smoothing, more),), height=HEIGHT).figure()


def curve_page(
    curve: LRCurve,
    answers: Answers,
    rule: str,
    smoothing: Smoothing | None = None,
    more: Sequence[Item] = (),
) -> go.Figure:
    """Return :func:`curve_panel` as an interactive plotly figure."""
    return Chart("", (curve_panel(curve, answers, rule, smoothing, more),), height=HEIGHT).page()


def _losses(curve: LRCurve, smoothing: Smoothing) -> Iterator[Line]:
    hover = [f"iteration {iteration}" for iteration in range(len(curve))]
    name, smoothed = _smoothed_name(smoothing), smoothing(curve.loss)
    yield Line(curve.lr, curve.loss, "loss of each batch", RAW, width=1, hover=hover)
    yield Line(curve.lr, smoothed, name, SMOOTHED, width=2, hover=hover)
    if curve.probe_loss is not None:
        yield Line(curve.lr, curve.probe_loss, "loss of the probe", PROBE, width=2, hover=hover)
    full = getattr(curve, "full_val_loss", None)
    if curve.val_loss is not None:
        name = "validation loss" if full is None else "validation loss (sample)"
        yield Line(curve.lr, curve.val_loss, name, VALIDATION, 1, "dot", hover=hover)
    if full is not None:
        name = "validation loss, full set"
        taken = np.isfinite(full)
        there = [text for text, here in zip(hover, taken, strict=True) if here]
        yield Line(curve.lr[taken], full[taken], name, VALIDATION, 0, markers=True, hover=there)


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
