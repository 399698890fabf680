"""What the pictures of several kinds of study share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lrrt_stage import LRRange, LRRTError
from lrrt_stage.charts import Band, Chart, Interval, Item, Line, Mark, Panel, Span, limits
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import band, stacked
from pipeline.studies.ranges import summarize
from pipeline.studies.study import suggested
from pipeline.task.recipes import published_ranges
from pipeline.task.tasks import Task

__all__ = [
    "band_panel",
    "bare_chart",
    "curves_chart",
    "drawable",
    "published_spans",
    "range_rows",
    "ranges_chart",
    "tests_table",
]

LR_AXIS = "learning rate"
MIN_POINTS = 2
"""Finite losses that a curve needs to be drawn."""


def drawable(tests: Sequence[RangeTestResult]) -> list[RangeTestResult]:
    """Return the tests that have a curve, and not just a loss that was not finite from the start.

    Raises
    ------
    LRRTError
        If there is none.
    """
    able = [each for each in tests if len(each.curve.finite) >= MIN_POINTS]
    if not able:
        raise LRRTError(
            f"none of {len(tests)} tests has {MIN_POINTS} finite losses: check data and loss, or "
            "lower lr_start"
        )
    return able


def band_panel(tests: Sequence[RangeTestResult], title: str, color: str | None = None) -> Panel:
    """Return the median smoothed loss with its 10 to 90 % band, and the median range."""
    drawn = drawable(tests)
    curves = stacked([each.curve for each in drawn], tests[0].job.plan.smoothing)
    spread = band(curves)
    found = summarize(suggested(tests))
    return Panel(
        title,
        LR_AXIS,
        "smoothed training loss",
        (
            Span(found.min_median, found.max_median, "range between the medians", "#f2a541"),
            *published_spans(tests[0].job.task),
            *(Line(curves.lr, row, width=0.6, color="#9db4c8", opacity=0.6) for row in curves.loss),
            Band(curves.lr, spread.q10, spread.q90, "10 to 90 % of the tests", color),
            Line(curves.lr, spread.median, f"median of {len(drawn)} tests", color, width=2.5),
        ),
        xlog=True,
        ylim=limits(*curves.loss),
    )


def curves_chart(tests: Sequence[RangeTestResult], title: str) -> Chart:
    """Return the curves of ``tests``, and how many of them were still running at each LR."""
    drawn = drawable(tests)
    curves = stacked([each.curve for each in drawn])
    alive = Panel(
        "Tests still running; those that stopped count with their last loss above",
        LR_AXIS,
        "tests",
        (Line(curves.lr, curves.alive, "", "#555555"),),
        xlog=True,
        ylim=(0, len(drawn) * 1.08),
    )
    return Chart(title, (band_panel(tests, "Smoothed loss"), alive), columns=1)


def bare_chart(tests: Sequence[RangeTestResult], title: str) -> Chart:
    """Return the smoothed loss of each test, which shows why it has no suggestion."""
    curves = [(each.curve.finite, each.job) for each in drawable(tests)]
    lines = [Line(c.lr, job.plan.smoothing(c.loss), job.name) for c, job in curves]
    ylim = limits(*(line.y for line in lines))
    panel = Panel("", LR_AXIS, "smoothed training loss", tuple(lines), xlog=True, ylim=ylim)
    return Chart(title, (panel,))


def ranges_chart(tests: Sequence[RangeTestResult], title: str) -> Chart:
    """Return the range that each test suggests, one row each, and the published ones."""
    rows = [(each.job.name, each.range) for each in tests if each.range is not None]
    found = summarize([lr_range for _, lr_range in rows])
    name, color = "10 to 90 % of the maxima", "#c0392b"
    items: list[Item] = [
        Span(found.max_q10, found.max_q90, name, color, 0.15)
        if found.max_q10 < found.max_q90
        else Mark(found.max_median, name, color),
        range_rows(rows, "suggested range"),
    ]
    published = published_ranges(tests[0].job.task)
    if published:
        items.append(range_rows(list(published.items()), "published"))
    return Chart(title, (Panel("", LR_AXIS, "", tuple(items), xlog=True),))


def tests_table(tests: Sequence[RangeTestResult]) -> pd.DataFrame:
    """Return a row per test: what tells it from the others, how it ended, what it suggests."""
    rows = []
    for each in tests:
        lr_range = each.range
        rows.append(
            {
                "test": each.job.name,
                **each.job.labels,
                "iterations": len(each.curve),
                "ended": each.curve.stop,
                "lr_min": lr_range.min if lr_range else np.nan,
                "lr_max": lr_range.max if lr_range else np.nan,
            }
        )
    return pd.DataFrame(rows)


def range_rows(named: Sequence[tuple[str, LRRange]], name: str) -> Interval:
    """Return a row per named range."""
    return Interval(
        [label for label, _ in named],
        np.array([lr_range.min for _, lr_range in named]),
        np.array([lr_range.max for _, lr_range in named]),
        name=name,
    )


def published_spans(task: Task) -> list[Span]:
    """Return the published ranges, if ``task`` is what they are for."""
    return [
        Span(lr_range.min, lr_range.max, f"{name}: {lr_range}", opacity=0.08)
        for name, lr_range in published_ranges(task).items()
    ]
