"""Figures of a training, and of a range test with its training."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage import LRRange, Reading
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import mark_range, plot_reading
from pipeline.training.loop import TrainingHistory

__all__ = ["plot_training", "summary_figure", "training_figure"]


def plot_training(training: TrainingHistory, ax: Axes) -> Axes:
    """Draw the losses and, on a second y axis, the learning rate over the iterations.

    Of several attempts, the losses of those that were lost may leave the axis at the top.
    """
    losses, starts = training.train_loss, training.starts
    validated = {e.iteration: e.val_loss for e in training.epochs if e.val_loss is not None}
    val_loss = [*validated.values()]
    positive = all(loss > 0 for loss in [*losses, *val_loss])
    final = f", last validation loss {val_loss[-1]:.4g}" if val_loss else ""
    several = f" in {len(starts)} attempts" if len(starts) > 1 else ""
    title = f"Training: {len(losses)} iterations{several}{final}"
    drawing.label_axes(ax, title, "iteration", "loss", log="y" if positive else "")
    ax.plot(range(len(losses)), losses, color=drawing.PALE, lw=1, label="training loss")
    if validated:
        # A line for each attempt: between two of them there is no way from one loss to the next.
        named: dict[str, Any] = {"label": "validation loss"}
        for first, end in pairwise([*starts, len(losses) + 1]):
            of_attempt = {step: loss for step, loss in validated.items() if first < step <= end}
            points = [*of_attempt], [*of_attempt.values()]
            if of_attempt:
                ax.plot(*points, "o-", color=drawing.VERMILION, lw=2, ms=3, **named)
                named = {}
    if len(starts) > 1:
        counting = np.array([*losses[starts[-1] :], *losses[:3]])
        low, high = drawing.loss_limits(counting)
        lowest = min([loss for loss in [*losses, *val_loss] if isfinite(loss)], default=low)
        ax.set_ylim((0.8 * lowest if positive else min(low, lowest)), high)
        for index, start in enumerate(starts[1:]):
            label = "" if index else "started again"
            ax.axvline(start, color=drawing.BLACK, lw=1.5, ls=":", label=label)
    label = "learning rate (right axis)"
    style: dict[str, Any] = {"color": drawing.GREEN, "ls": "--", "lw": 1.5, "label": label}
    rate = ax.twinx()
    rate.plot(range(len(training.lr)), training.lr, **style)
    ax.plot([], [], **style)  # for the legend
    rate.set_ylabel("learning rate", color=drawing.GREEN)
    rate.spines["top"].set_visible(False)
    drawing.legend_below(ax)
    return ax


def training_figure(training: TrainingHistory) -> Figure:
    """Return losses and learning rate over the iterations."""
    figure, (ax,) = drawing.new_figure()
    plot_training(training, ax)
    return drawing.finished(figure)


def summary_figure(reading: Reading, trained: LRRange, training: TrainingHistory) -> Figure:
    """Return the range test with the range that was trained, beside the training."""
    figure, (left, right) = drawing.new_figure(columns=2, width=6.5)
    plot_reading(reading, left)
    mark_range(left, trained.min, trained.max, f"trained: {trained}", drawing.BLACK, 0.92)
    plot_training(training, right)
    return drawing.finished(figure)
