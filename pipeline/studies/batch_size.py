"""How the suggestion grows with the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from lrrt_stage import LRCurve, Smoothing
from lrrt_stage.plots import drawing
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import drawable, label_losses, lag_free, stacked
from pipeline.studies.report import tests_table
from pipeline.studies.statistics import Estimate, coverage, slope
from pipeline.studies.study import Findings, Study, by_label, suggested

__all__ = ["batch_size_study"]


def batch_size_study(study: Study) -> Findings:
    """A list of batch sizes from the same weights, in several data orders (article, Fig 9)."""
    sizes = study.options.list_of("batch_sizes", int)
    require(len(sizes) >= 2, f"batch_sizes={study.options.batch_sizes!r}: give two or more")
    jobs = []
    for size, order in product(sizes, range(study.tests(5, at_least=1))):
        labels = {"batch_size": size, "data_seed": study.task.data_seed + order}
        jobs.append(study.job(f"batch {size} order {order}", labels, **labels))
    tests = study.measure(jobs)
    found = suggested(tests)
    able = drawable(tests)
    table = tests_table(able).assign(
        fall_smoothed=[_fall(_steady(test)(test.curve.finite.loss)) for test in able],
        fall_lag_free=[_fall(lag_free(test.curve.finite)) for test in able],
    )
    columns = ["iterations", "lr_min", "lr_max", "fall_smoothed", "fall_lag_free"]
    medians = table.groupby("batch_size")[columns].median().reset_index()
    points = [(t.job.labels["batch_size"], t.range.max) for t in tests if t.range is not None]
    with_one = sorted({size for size, _ in points})
    require(
        len(with_one) >= 2,
        f"only the tests of batch size {with_one[0]} have a suggestion, those of two sizes are "
        "needed: see the runs of the others, or give other batch_sizes",
    )
    fitted = slope([size for size, _ in points], [lr for _, lr in points])
    interval = (
        "two tests have a slope, but no interval"
        if math.isnan(fitted.low)
        else f"90 % interval {fitted.low:.2f} to {fitted.high:.2f}"
    )
    # The change of a fall with every doubling of the batch size, by least squares.
    smoothed, free = (
        float(np.polyfit(np.log2(medians["batch_size"]), medians[column], 1)[0])
        for column in ("fall_smoothed", "fall_lag_free")
    )
    covered, sentence = coverage(found, len(tests))
    return Findings(
        "The batch size and the suggestion",
        "Does a larger batch recommend a larger LR, and does its loss really fall less?",
        [
            f"The suggested maximum goes as batch size to the power {fitted.value:.2f} "
            f"({interval}); linear scaling is 1, square root scaling 0.5. All tests start from the "
            "same weights.",
            "With every doubling of the batch the distance by which the loss falls changes by "
            f"{smoothed:+.2f} for the smoothed loss, and by {free:+.2f} for the lag-free loss. "
            f"{_verdict(smoothed, free)}",
        ],
        f"With every doubling of the batch size, multiply the maximum by {2**fitted.value:.2g}; "
        f"outside of {with_one[0]} to {with_one[-1]}, run a new range test. {sentence}",
        {
            "slope": fitted.value,
            "slope_low": fitted.low,
            "slope_high": fitted.high,
            "smoothed_fall_per_doubling": smoothed,
            "lag_free_fall_per_doubling": free,
            **covered,
        },
        {
            "curves": _curves_figure(by_label(able, "batch_size")),
            "scaling": _scaling_figure(points, fitted),
        },
        {"Batch sizes (medians)": medians, "Tests": tests_table(tests)},
    )


def _steady(test: RangeTestResult) -> Smoothing:
    """Return the test's average, corrected if it is the biased one, which starts near zero."""
    smoothing = test.reading.smoothing
    return replace(smoothing, average="corrected") if smoothing.average == "biased" else smoothing


def _fall(loss: np.ndarray) -> float:
    """Return how far a loss falls: from its plateau, the first tenth, to its minimum."""
    return float(np.median(loss[: max(1, len(loss) // 10)]) - loss.min())


def _verdict(smoothed: float, free: float) -> str:
    if smoothed >= 0:
        return "So a smaller descent of large batches is not seen here."
    if free < smoothed / 2:
        return "So the smaller descent of large batches is not smoothing's alone."
    return "So the smaller descent of large batches is for the most part an artefact of smoothing."


def _curves_figure(groups: Mapping[int, list[RangeTestResult]]) -> Figure:
    figure, axes = drawing.new_figure(heights=[4.0, 4.0])
    averages = {
        "Smoothed training loss": lambda test: test.reading.smoothing(test.curve.finite.loss),
        "Training loss, averaged without lag": lambda test: lag_free(test.curve.finite),
    }
    for ax, (title, average) in zip(axes, averages.items(), strict=True):
        medians = []
        for index, (size, tests) in enumerate(groups.items()):
            lr, loss = stacked([LRCurve(t.curve.finite.lr, average(t)) for t in tests])
            medians.append(np.median(loss, axis=0))
            color, style = drawing.COLORS[index % 7], "--" if index >= 7 else "-"
            ax.plot(lr, medians[-1], color=color, ls=style, lw=2, label=f"batch size {size}")
        label_losses(ax, f"{title}, median over data orders", "training loss", medians)
    drawing.legend_below(axes[1])
    return drawing.finished(figure)


def _scaling_figure(points: Sequence[tuple[int, float]], fitted: Estimate) -> Figure:
    sizes, maxima = np.array(points, dtype=float).T
    ends = np.array([sizes.min(), sizes.max()])
    center = np.log10(sizes).mean(), np.log10(maxima).mean()
    lines = (
        (fitted.value, f"fitted: power {fitted.value:.2f}", drawing.BLUE, "-"),
        (1.0, "linear scaling: 1", drawing.VERMILION, "--"),
        (0.5, "square root: 0.5", drawing.GREEN, ":"),
    )
    figure, (ax,) = drawing.new_figure()
    title = "Suggested maximum over batch size"
    drawing.label_axes(ax, title, "batch size", "suggested maximum, learning rate", log="xy")
    ax.plot(sizes, maxima, "o", color=drawing.BLACK, ms=5, alpha=0.6, label="a test")
    for power, label, color, style in lines:
        line = 10 ** (center[1] + power * (np.log10(ends) - center[0]))
        ax.plot(ends, line, color=color, ls=style, lw=2, label=label)
    ticks = np.unique(sizes).tolist()
    ax.set_xticks(ticks, [f"{size:g}" for size in ticks])
    ax.set_xticks([], minor=True)
    drawing.legend_below(ax)
    return drawing.finished(figure)
