"""Figures that several kinds of study share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage import LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.plots.comparison_plot import plot_losses, plot_ranges
from lrrt_stage.plots.curve_plot import LR_LABEL
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import loss_name, loss_read, stacked
from pipeline.studies.ranges import best_covered, quantiles
from pipeline.studies.study import suggested
from pipeline.task.recipes import published_ranges
from pipeline.task.tasks import Task

__all__ = [
    "curves_figure",
    "drawable",
    "losses_figure",
    "name_rows_with_published",
    "plot_band",
    "plot_published",
    "ranges_figure",
]

MIN_POINTS = 2
"""Finite losses that a curve needs to be drawn."""


def drawable(tests: Sequence[RangeTestResult]) -> list[RangeTestResult]:
    """Return the tests that have a curve, and not just a loss that was not finite from the start.

    Raises
    ------
    LRRTError
        If there is none.
    """
    able = [test for test in tests if len(test.curve.finite) >= MIN_POINTS]
    if not able:
        raise LRRTError(
            f"none of {len(tests)} tests has {MIN_POINTS} finite losses: check data and loss, or "
            "lower lr_start"
        )
    return able


def plot_band(tests: Sequence[RangeTestResult], title: str, ax: Axes) -> Axes:
    """Draw the loss that the rule reads: each test, the median, and the 10 to 90 % band."""
    readings = [test.reading for test in drawable(tests)]
    lr, loss, _ = stacked([loss_read(reading) for reading in readings])
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
    drawing.label_axes(ax, title, LR_LABEL, loss_name(readings), log="x")
    ax.set_ylim(*drawing.loss_limits(*loss))
    drawing.legend_below(ax)
    return ax


def curves_figure(tests: Sequence[RangeTestResult], title: str) -> Figure:
    """Return the curves of tests, and how many of them were still running at a learning rate."""
    figure, (losses, running) = drawing.new_figure(heights=[4.2, 1.8])
    plot_band(tests, title, losses)
    lr, _, count = stacked([test.curve for test in drawable(tests)])
    running.plot(lr, count, color=drawing.GREY, drawstyle="steps-post")
    label = "Tests still running; a test that stopped counts with its last loss above"
    drawing.label_axes(running, label, LR_LABEL, "tests", log="x")
    running.set_ylim(0, count[0] * 1.1)
    running.sharex(losses)
    return drawing.finished(figure)


def losses_figure(tests: Sequence[RangeTestResult]) -> Figure:
    """Return the losses of tests, which show why they have no suggestion."""
    ax = plot_losses({test.job.name: test.reading for test in drawable(tests)})
    return ax.figure  # type: ignore[return-value]


def ranges_figure(tests: Sequence[RangeTestResult]) -> Figure:
    """Return the range that each test suggests, one row each, and the published ones."""
    able = [test for test in tests if test.range is not None]
    figure, (ax,) = drawing.new_figure(heights=[1.6 + 0.27 * len(able)])
    maximum, inside = best_covered(suggested(tests))
    label = f"{maximum:.3g}, inside the ranges of {inside} of {len(tests)} tests"
    ax.axvline(maximum, color=drawing.VERMILION, ls="--", label=label)
    plot_ranges({test.job.name: test.reading for test in able}, ax)
    name_rows_with_published(ax, [test.job.name for test in able], tests[0].job.task)
    drawing.legend_below(ax)
    return drawing.finished(figure)


def name_rows_with_published(ax: Axes, names: Sequence[str], task: Task) -> None:
    """Name the rows of ranges; below them stand the published ones, if ``task`` has any."""
    published = published_ranges(task)
    if published:
        ends = np.array([(lr_range.min, lr_range.max) for lr_range in published.values()])
        drawing.plot_bars(ax, ends, first_row=len(names), width=8, label="published")
    drawing.name_rows(ax, [*names, *published])


def plot_published(task: Task, ax: Axes) -> None:
    """Shade the published ranges, if ``task`` is what they are for."""
    for color, (name, lr_range) in zip(
        drawing.COLORS[2:], published_ranges(task).items(), strict=False
    ):
        ax.axvspan(lr_range.min, lr_range.max, color=color, alpha=0.08, label=f"{name}: {lr_range}")
