"""The curves of a study's tests: the loss that a rule reads, on one grid, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage import RULES, LRCurve, LRRTError, Reading, Smoothing, zero_phase
from lrrt_stage.plots import drawing
from lrrt_stage.plots.comparison_plot import plot_ranges
from lrrt_stage.plots.curve_plot import LR_LABEL
from lrrt_stage.rules.descent import SKIP_FIRST, SKIP_LAST, find_descent, require_turn
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.statistics import best_covered, quantiles
from pipeline.studies.study import suggested
from pipeline.task.recipes import published_ranges
from pipeline.task.tasks import Task

__all__ = [
    "bands_figure",
    "drawable",
    "label_losses",
    "lag_free",
    "lag_of_minimum",
    "loss_name",
    "loss_read",
    "plot_published",
    "ranges_figure",
    "stacked",
]

LAG_FREE_WINDOW = 1 / 3
"""Decades of LR that the weights of the lag-free average add up to: enough to quiet the batches,
and narrower than the valley."""


def loss_read(reading: Reading) -> LRCurve:
    """Return the finite part of a curve, with the loss that the chosen rule reads."""
    curve = reading.curve.finite
    _, loss = RULES[reading.rule].reads(curve, reading.smoothing)
    return replace(curve, loss=loss)


def loss_name(readings: Iterable[Reading]) -> str:
    """Return the name of the loss that :func:`loss_read` returns; all names where they differ."""
    found = (RULES[each.rule].reads(each.curve.finite, each.smoothing) for each in readings)
    return " or ".join(dict.fromkeys(name for name, _ in found))


def stacked(curves: Sequence[LRCurve]) -> tuple[np.ndarray, np.ndarray]:
    """Return the LR grid ``[m]`` of the longest of curves of one ramp, and the losses ``[k, m]``.

    A test that ended early, or in a loss that is not finite, keeps its last finite value to the
    end, as in the published code of S. Maggio, *The Learning Rate Black Magic* (2020). So a
    quantile over tests counts a diverged one as high, but no higher than where it stopped.
    """
    lr = max((curve.lr for curve in curves), key=len)
    losses = pd.concat([pd.Series(curve.finite.loss) for curve in curves], axis=1)
    return lr, losses.reindex(range(len(lr))).ffill().to_numpy().T


def lag_of_minimum(curve: LRCurve, smoothing: Smoothing) -> float:
    """Return how many decades of LR the smoothed loss reaches its minimum late.

    That is compared with the minimum of the lag-free average, over the points that the rules look
    at. A suggested maximum that is a tenth of the LR at the minimum is too high by as much. It is a
    lower bound where the smoothed loss is still falling at the curve's end.

    On simulated curves, noise of 5 % of the loss moves the lag-free minimum by about a tenth of a
    decade either way, noise of 15 % by two tenths.
    """
    lr, _, lowest = find_descent(curve, smoothing)
    # Where the smoothing is narrower than the window, the average is as narrow (its weights have
    # the sum 1 / (1 - β) as well), so that the raw loss has no lag. It must not be as wide as a
    # wide smoothing: at 100 iterations and β = 0.98 it would take in the whole explosion, and move
    # its minimum by decades the other way.
    free = lag_free(curve.finite, smoothing.beta / (2 - smoothing.beta))[SKIP_FIRST:-SKIP_LAST]
    turn = int(np.argmin(free))
    require_turn(curve, lr, turn)
    return float(np.log10(lr[lowest]) - np.log10(lr[turn]))


def lag_free(curve: LRCurve, beta_at_most: float = 1.0) -> np.ndarray:
    """Return the loss averaged over a third of a decade of LR to both sides alike, shape ``[n]``.

    ``beta_at_most`` bounds the factor of the average (:func:`lrrt_stage.zero_phase`).
    """
    per_iteration = float(np.median(np.diff(np.log10(curve.lr))))
    width = max(1.0, LAG_FREE_WINDOW / per_iteration)
    return zero_phase(curve.loss, min(beta_at_most, (width - 1) / (width + 1)))


def drawable(tests: Sequence[RangeTestResult]) -> list[RangeTestResult]:
    """Return the tests that have a curve; LRRTError if there is none."""
    able = [test for test in tests if len(test.curve.finite) >= 2]
    if not able:
        raise LRRTError(
            f"none of {len(tests)} tests has 2 finite losses: check data and loss, or lower "
            "lr_start"
        )
    return able


def label_losses(ax: Axes, title: str, name: str, losses: Sequence[np.ndarray]) -> None:
    """Label axes of losses over the learning rate, with limits that show every descent."""
    drawing.label_axes(ax, title, LR_LABEL, name, log="x")
    ax.set_ylim(*drawing.loss_limits(*losses))


def _plot_band(tests: Sequence[RangeTestResult], title: str, ax: Axes) -> None:
    """Draw the loss that the rule reads: each test, the median, and the 10 to 90 % band."""
    readings = [test.reading for test in drawable(tests)]
    lr, loss = stacked([loss_read(reading) for reading in readings])
    q10, median, q90 = np.quantile(loss, [0.1, 0.5, 0.9], axis=0)
    ends = quantiles(suggested(tests))["median"]
    label = f"between the medians: {ends['min']:.3g} to {ends['max']:.3g}"
    ax.axvspan(ends["min"], ends["max"], color=drawing.ORANGE, alpha=0.25, lw=0, label=label)
    plot_published(tests[0].job.task, ax)
    ax.plot(lr, loss.T, color=drawing.PALE, lw=0.7)
    ax.fill_between(
        lr, q10, q90, color=drawing.BLUE, alpha=0.2, lw=0, label="10 to 90 % of the tests"
    )
    ax.plot(lr, median, color=drawing.BLUE, lw=2.5, label=f"median of {len(loss)} tests")
    label_losses(ax, title, loss_name(readings), list(loss))
    drawing.legend_below(ax)


def bands_figure(groups: Mapping[str, Sequence[RangeTestResult]]) -> Figure:
    """Return the curves of groups of tests by title, one above the other on the same axes."""
    figure, axes = drawing.new_figure(heights=[4.0] * len(groups))
    for ax, (title, tests) in zip(axes, groups.items(), strict=True):
        _plot_band(tests, title, ax)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.sharex(axes[0])
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return drawing.finished(figure)


def ranges_figure(tests: Sequence[RangeTestResult]) -> Figure:
    """Return the range that each test suggests, one row each, over the published ones."""
    able = [test for test in tests if test.range is not None]
    figure, (ax,) = drawing.new_figure(heights=[1.6 + 0.27 * len(able)])
    maximum, inside = best_covered(suggested(tests))
    label = f"{maximum:.3g}, inside the ranges of {inside} of {len(tests)} tests"
    ax.axvline(maximum, color=drawing.VERMILION, ls="--", label=label)
    plot_published(tests[0].job.task, ax)
    plot_ranges({test.job.name: test.reading for test in able}, ax)
    drawing.legend_below(ax)
    return drawing.finished(figure)


def plot_published(task: Task, ax: Axes) -> None:
    """Shade the published ranges, if ``task`` is what they are for."""
    published = published_ranges(task).items()
    for color, (name, lr_range) in zip(drawing.COLORS[2:], published, strict=False):
        ax.axvspan(lr_range.min, lr_range.max, color=color, alpha=0.08, label=f"{name}: {lr_range}")
