"""The curves of a finished study, grouped by the order of magnitude of what they suggest."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import loss_name, loss_read, stacked
from pipeline.studies.figures import plot_published
from pipeline.studies.ranges import coverage
from pipeline.studies.study import (
    Findings,
    Study,
    counted,
    differing_in_seeds,
    kind,
    suggested,
)

__all__ = ["grouped_study"]


@kind("grouped", takes_tests=True, one_test=True)
def grouped_study(study: Study) -> Findings:
    """Curves by order of magnitude of the suggested maximum (the article's published code)."""
    if study.source is None:
        raise LRRTError(
            "kind=grouped takes the tests of a finished study: name it with study_run_id"
        )
    source = differing_in_seeds(study, study.source)
    found = suggested(source)
    groups: dict[str, list[RangeTestResult]] = {}
    for test in sorted(source, key=lambda test: test.range.max if test.range else 0):
        if test.range is not None:
            groups.setdefault(_decade(test.range.max), []).append(test)
    lowest = {
        name: np.median([loss_read(test.reading).loss.min() for test in tests])
        for name, tests in groups.items()
    }
    read = [test.reading for tests in groups.values() for test in tests]
    covered, sentence = coverage(found, len(source))
    numbers = ", ".join(f"{len(tests)} from {name}" for name, tests in groups.items())
    losses = ", ".join(f"{loss:.3g} ({name})" for name, loss in lowest.items())
    return Findings(
        "Curves grouped by the order of magnitude of their maximum",
        "Do tests that suggest very different learning rates look different?",
        [
            f"The suggested maxima of {counted(len(found), 'test')} fall into "
            f"{counted(len(groups), 'order')} of magnitude: {numbers}.",
            f"In the median over the tests of a group, the {loss_name(read)} falls to {losses}.",
        ],
        f"{sentence} Where groups reach the same loss, the lower group's maximum is safer.",
        {
            "groups": len(groups),
            "largest_group_share": max(map(len, groups.values())) / len(found),
            **covered,
        },
        {"groups": _groups_figure(study, groups)},
        {
            "Groups": pd.DataFrame(
                {
                    "maximum": list(groups),
                    "tests": [len(tests) for tests in groups.values()],
                    "share": [len(tests) / len(found) for tests in groups.values()],
                    "first loss": [
                        np.median([test.curve.loss[0] for test in tests])
                        for tests in groups.values()
                    ],
                    "lowest loss": list(lowest.values()),
                }
            )
        },
    )


def _groups_figure(study: Study, groups: dict[str, list[RangeTestResult]]) -> Figure:
    figure, axes = drawing.new_figure(heights=[3.4] * len(groups))
    for ax, (name, tests) in zip(axes, groups.items(), strict=True):
        lr, loss, _ = stacked([loss_read(test.reading) for test in tests])
        plot_published(study.task, ax)
        ax.plot(lr, loss.T, color=drawing.PALE, lw=0.8)
        ax.plot(lr, np.median(loss, axis=0), color=drawing.BLUE, lw=2.5, label="median")
        title = f"Maximum from {name}: {counted(len(tests), 'test')}"
        drawing.label_axes(ax, title, LR_LABEL, loss_name(test.reading for test in tests), log="x")
        ax.set_ylim(*drawing.loss_limits(*loss))
        ax.sharex(axes[0])
    drawing.legend_below(axes[-1])
    return drawing.finished(figure)


def _decade(lr: float) -> str:
    """Return the order of magnitude; a power of ten begins its own, to the ninth digit."""
    power = math.floor(round(math.log10(lr), 9))
    return f"1e{power} to 1e{power + 1}"
