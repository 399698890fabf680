"""How the suggestion grows with the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lrrt_stage import LRCurve, Smoothing
from lrrt_stage.charts import Chart, Line, Panel, limits
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import lag_free, stacked
from pipeline.studies.figures import LR_AXIS, drawable, tests_table
from pipeline.studies.statistics import Slope, slope
from pipeline.studies.study import Findings, Study, kind, suggested

__all__ = ["batch_size_study"]


@kind("batch-size")
def batch_size_study(study: Study) -> Findings:
    """A list of batch sizes from the same weights, in several data orders (article, Fig 9)."""
    sizes = study.options.list_of("batch_sizes", int)
    require(len(sizes) >= 2, f"batch_sizes={study.options.batch_sizes!r}: give two or more")
    require(sizes[0] >= 1, f"batch_sizes={study.options.batch_sizes!r}: {sizes[0]} is below 1")
    require(
        sizes[-1] <= study.train_size,
        f"batch size {sizes[-1]} is larger than the {study.train_size} training examples: "
        "leave it out of batch_sizes",
    )
    orders = study.tests(5, at_least=1)
    tests = study.measure(
        [
            study.job(
                f"batch {size} order {order}",
                {"batch_size": size, "data_seed": study.task.data_seed + order},
                batch_size=size,
                data_seed=study.task.data_seed + order,
            )
            for size in sizes
            for order in range(orders)
        ]
    )
    drawn = drawable(tests)
    groups = {
        size: members
        for size in sizes
        if (members := [t for t in drawn if t.job.labels["batch_size"] == size])
    }
    table = pd.DataFrame([_row(size, members) for size, members in groups.items()])
    points = [(t.job.labels["batch_size"], t.range.max) for t in tests if t.range is not None]
    without = len(tests) - len(suggested(tests))
    answered = sorted({size for size, _ in points})
    require(
        len(answered) >= 2,
        f"only the tests of batch size {answered[0]} have a suggestion, those of two sizes are "
        "needed: see the runs of the others, or give other batch_sizes",
    )
    fitted = slope([size for size, _ in points], [lr for _, lr in points])
    shallow = _descent_slope(table, "fall_smoothed"), _descent_slope(table, "fall_lag_free")
    return Findings(
        "The batch size and the suggestion",
        "Does a larger batch recommend a larger LR, and does its loss really fall less?",
        [
            f"The suggested maximum goes as batch size to the power {fitted.value:.2f} "
            f"({_interval(fitted)}); linear scaling is 1, square root scaling 0.5. All tests start "
            "from the same weights.",
            f"With every doubling of the batch the smoothed loss falls {_less(shallow[0])}; the "
            f"lag-free loss falls {_less(shallow[1])}. {_verdict(*shallow)}",
            *([f"{without} of {len(tests)} tests gave no suggestion."] if without else []),
        ],
        {
            "slope": fitted.value,
            "slope_low": fitted.low,
            "slope_high": fitted.high,
            "smoothed_fall_per_doubling": shallow[0],
            "lag_free_fall_per_doubling": shallow[1],
        },
        {
            "curves": _curves_chart(groups),
            "scaling": _scaling_chart(points, fitted),
        },
        {"Batch sizes (medians)": table, "Tests": tests_table(tests)},
    )


def _row(size: int, tests: Sequence[RangeTestResult]) -> dict[str, float]:
    found = [each.range for each in tests if each.range is not None]
    smoothed = [_fall(_steady(each)(each.curve.finite.loss)) for each in tests]
    free = [_fall(lag_free(each.curve.finite)) for each in tests]
    return {
        "batch_size": size,
        "iterations": float(np.median([len(each.curve) for each in tests])),
        "lr_min": float(np.median([each.min for each in found])) if found else math.nan,
        "lr_max": float(np.median([each.max for each in found])) if found else math.nan,
        "fall_smoothed": float(np.median(smoothed)),
        "fall_lag_free": float(np.median(free)),
    }


def _steady(test: RangeTestResult) -> Smoothing:
    """Return the test's average, corrected if it is the biased one, which starts near zero."""
    smoothing = test.job.plan.smoothing
    return replace(smoothing, average="corrected") if smoothing.average == "biased" else smoothing


def _fall(loss: np.ndarray) -> float:
    """Return how far a loss falls: from its plateau, the first tenth, to its minimum."""
    return float(np.median(loss[: max(1, len(loss) // 10)]) - loss.min())


def _descent_slope(table: pd.DataFrame, column: str) -> float:
    """Return the change of a fall with every doubling of the batch size, by least squares."""
    return float(np.polyfit(np.log2(table["batch_size"]), table[column], 1)[0])


def _less(change: float) -> str:
    if round(change, 9) == 0:
        return "as far"
    return f"{abs(change):.2g} {'less' if change < 0 else 'more'}"


def _verdict(smoothed: float, free: float) -> str:
    if smoothed >= 0:
        return "So a smaller descent of large batches is not seen here."
    if free < smoothed / 2:
        return "So the smaller descent of large batches is not smoothing's alone."
    return "So the smaller descent of large batches is for the most part an artefact of smoothing."


def _interval(fitted: Slope) -> str:
    if math.isnan(fitted.low):
        return "two tests have a slope, but no interval"
    return f"90 % interval {fitted.low:.2f} to {fitted.high:.2f}"


def _curves_chart(groups: dict[int, list[RangeTestResult]]) -> Chart:
    smoothed: list[Line] = []
    free: list[Line] = []
    for size, tests in groups.items():
        finite = [each.curve.finite for each in tests]
        name = f"batch size {size}"
        for lines, curves in (
            (smoothed, stacked(finite, tests[0].job.plan.smoothing)),
            (free, stacked([LRCurve(each.lr, lag_free(each)) for each in finite])),
        ):
            lines.append(Line(curves.lr, np.median(curves.loss, axis=0), name, width=2))
    titles = ("Smoothed as the rules see it", "Without lag")
    panels = tuple(
        Panel(
            title,
            LR_AXIS,
            "training loss",
            tuple(part),
            xlog=True,
            ylim=limits(*(line.y for line in part)),
        )
        for title, part in zip(titles, (smoothed, free), strict=True)
    )
    return Chart("The loss by batch size, medians over data orders", panels)


def _scaling_chart(points: Sequence[tuple[int, float]], fitted: Slope) -> Chart:
    sizes, maxima = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    grid = np.array([sizes.min(), sizes.max()])
    center = np.log10(sizes).mean(), np.log10(maxima).mean()

    def line(power: float) -> np.ndarray:
        return 10 ** (center[1] + power * (np.log10(grid) - center[0]))

    items = (
        Line(sizes, maxima, "a test", width=0, markers=True),
        Line(grid, line(fitted.value), f"fitted: power {fitted.value:.2f}", width=2.2),
        Line(grid, line(1.0), "linear scaling: 1", dash="dash"),
        Line(grid, line(0.5), "square root: 0.5", dash="dot"),
    )
    title = "Suggested maximum over batch size"
    ticks = tuple(np.unique(sizes).tolist())
    panel = Panel("", "batch size", LR_AXIS, items, xlog=True, ylog=True, xticks=ticks)
    return Chart(title, (panel,))
