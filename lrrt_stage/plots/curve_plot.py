"""A range test as a figure that needs no caption."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.plots import drawing
from lrrt_stage.rules.consensus import Consensus
from lrrt_stage.rules.reading import Reading

__all__ = ["LR_LABEL", "plot_curve", "plot_reading"]

LR_LABEL = "learning rate"
ENDS = {
    "completed": "reached the last learning rate",
    "diverged": "stopped: the loss diverged",
    "non-finite": "stopped: the loss was not finite",
    "interrupted": "interrupted",
}


def plot_curve(curve: LRCurve, smoothing: Smoothing | None = None, ax: Axes | None = None) -> Axes:
    """Draw the losses of a range test over the learning rate: raw, smoothed, probe, validation."""
    if ax is None:
        return drawing.on_new_figure(plot_curve, curve, smoothing)
    _draw_losses(curve, smoothing, ax)
    drawing.legend_below(ax)
    return ax


def _draw_losses(curve: LRCurve, smoothing: Smoothing | None, ax: Axes) -> None:
    smoothing, full = smoothing or Smoothing(), curve.full_val_loss
    lines = []

    def line(loss: np.ndarray, color: str, label: str, lw: float, ls: str = "-") -> None:
        evaluated = ~np.isnan(loss)
        lines.append(loss)
        ax.plot(curve.lr[evaluated], loss[evaluated], color=color, lw=lw, ls=ls, label=label)

    line(curve.loss, drawing.PALE, "loss of each batch", 1)
    name = f"smoothed ({smoothing.average}, β = {smoothing.beta:g})"
    line(smoothing(curve.loss), drawing.BLUE, name, 2)
    if curve.probe_loss is not None:
        line(curve.probe_loss, drawing.GREEN, "loss of the probe", 2, "--")
    if curve.val_loss is not None:
        name = "validation loss" if full is None else "validation loss (sample)"
        line(curve.val_loss, drawing.GREY, name, 1.2, ":")
    if full is not None:
        ax.plot(curve.lr, full, "o", color=drawing.GREY, ms=4, label="validation loss, full set")
    epochs = "" if curve.epochs is None else f", {curve.epochs:.3g} epochs"
    title = f"LR range test: {len(curve)} iterations{epochs}, {ENDS[curve.stop]}"
    drawing.label_axes(ax, title, LR_LABEL, "training loss" if len(lines) == 2 else "loss", log="x")
    ax.set_ylim(*drawing.loss_limits(*lines))


def plot_reading(reading: Reading, ax: Axes | None = None) -> Axes:
    """Draw a range test with the range that is suggested and the interval of its maximum.

    One more rule is marked for comparison: the article's, or ``robust`` where that is the chosen
    one. Of several tests, the range of their consensus is drawn with the maximum of every test.
    """
    if ax is None:
        return drawing.on_new_figure(plot_reading, reading)
    _draw_losses(reading.curve, reading.smoothing, ax)
    consensus, final = reading.consensus, reading.final
    if isinstance(consensus, Consensus):
        name = f"consensus of {len(consensus.ranges)} tests"
    else:
        name = f"suggested range ({reading.rule})"
    if final.range is None:
        ax.plot([], [], " ", label=f"{name}: none, {final.confidence.verdict}")
    else:
        ax.axvspan(final.range.min, final.range.max, color=drawing.ORANGE, alpha=0.25, lw=0,
                   label=f"{name}: {final.range}")  # fmt: skip
        ax.axvline(final.range.max, color=drawing.ORANGE, lw=1.5)
        low, high, verdict = final.confidence.low, final.confidence.high, final.confidence.verdict
        mark_range(ax, low, high, f"maximum between {low:.3g} and {high:.3g} ({verdict})")
    if isinstance(consensus, Consensus):
        others = [lr_range.max for lr_range in consensus.ranges[1:] if lr_range is not None]
        for number, maximum in enumerate(others):
            label = "maxima of the other tests" if number == 0 else "_nolegend_"
            ax.axvline(maximum, color=drawing.BLACK, lw=1, ls=":", label=label)
    if consensus is not None and reading.chosen.range is not None:
        maximum = reading.chosen.range.max
        ax.axvline(maximum, color=drawing.VERMILION, lw=1.2, ls="--",
                   label=f"this test alone ({reading.rule}): {maximum:.3g}")  # fmt: skip
    second = "robust" if reading.rule == "article" else "article"
    found = reading.suggestions[second].range if second in reading.suggestions else None
    if found is not None:
        label = f"{second}: {found.max:.3g}"
        ax.axvline(found.max, color=drawing.PURPLE, lw=1.5, ls="-.", label=label)
    drawing.legend_below(ax)
    return ax


def mark_range(
    ax: Axes,
    low: float,
    high: float,
    label: str,
    color: str = drawing.VERMILION,
    height: float = 0.97,
) -> None:
    """Draw a bar from ``low`` to ``high`` at a height in parts of the axes'."""
    if np.isfinite([low, high]).all():
        place = ax.get_xaxis_transform()
        ax.plot([low, high], [height] * 2, color=color, lw=5, transform=place, label=label,
                marker="|", ms=9, solid_capstyle="butt")  # fmt: skip
