"""The curves of a finished study, grouped by the order of magnitude of what they suggest."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.charts import Chart, Line, Panel, limits
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.curves import stacked
from pipeline.studies.figures import LR_AXIS, published_spans
from pipeline.studies.study import Findings, Study, alike, counted, kind, suggested

__all__ = ["grouped_study"]


@kind("grouped", takes_tests=True, one_test=True)
def grouped_study(study: Study) -> Findings:
    """Curves by order of magnitude of the suggested maximum (the article's published code)."""
    if study.source is None:
        raise LRRTError(
            "kind=grouped takes the tests of a finished study: name it with study_run_id"
        )
    source = alike(study, study.source)
    found = suggested(source)
    groups: dict[int, list[RangeTestResult]] = {}
    for each in source:
        if each.range is not None:
            groups.setdefault(_power(each.range.max), []).append(each)
    groups = dict(sorted(groups.items()))
    panels, rows = [], []
    for power, tests in groups.items():
        curves = stacked([each.curve for each in tests], tests[0].job.plan.smoothing)
        median = np.median(curves.loss, axis=0)
        panels.append(
            Panel(
                f"Maximum from {_decade(power)}: {counted(len(tests), 'test')}",
                LR_AXIS,
                "smoothed training loss",
                (
                    *published_spans(study.task),
                    *(Line(curves.lr, row, width=0.7, color="#9db4c8") for row in curves.loss),
                    Line(curves.lr, median, "median", "#1f4e79", 2.5),
                ),
                xlog=True,
                ylim=limits(*curves.loss),
            )
        )
        rows.append(
            {
                "maximum": _decade(power),
                "tests": len(tests),
                "share": len(tests) / len(found),
                "first loss": float(np.median([each.curve.loss[0] for each in tests])),
                "lowest smoothed loss": float(np.median(curves.loss.min(axis=1))),
            }
        )
    table = pd.DataFrame(rows)
    largest = max(map(len, groups.values()))
    without = len(source) - len(found)
    title = "Curves grouped by the order of magnitude of their maximum"
    return Findings(
        title,
        "Do tests that suggest very different learning rates look different?",
        [
            f"The suggested maxima of {counted(len(found), 'test')} fall into "
            f"{counted(len(groups), 'order')} of magnitude: "
            + ", ".join(f"{len(tests)} from {_decade(power)}" for power, tests in groups.items())
            + ".",
            "In the median over the tests of each, the smoothed loss falls to "
            + ", ".join(
                f"{loss:.3g} ({name})"
                for name, loss in zip(table["maximum"], table["lowest smoothed loss"], strict=True)
            )
            + ".",
            *([f"{without} of {len(source)} tests gave no suggestion."] if without else []),
        ],
        {
            "groups": len(groups),
            "largest_group_share": largest / len(found),
        },
        {"groups": Chart(title, tuple(panels))},
        {"Groups": table},
    )


def _power(lr: float) -> int:
    """Return the order of magnitude; a power of ten belongs to its own, to the ninth digit."""
    return math.floor(round(math.log10(lr), 9))


def _decade(power: int) -> str:
    return f"1e{power} to 1e{power + 1}"
