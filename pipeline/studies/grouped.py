"""The curves of a finished study, grouped by the order of magnitude of what they suggest."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from lrrt_stage.charts import Chart, Line, Panel, limits

from lrrt_stage import LRRTError
from pipeline.studies.curves import stacked
from pipeline.studies.jobs import Measured
from pipeline.studies.pictures import LR_AXIS
from pipeline.studies.study import Findings, Study, kind, suggested

__all__ = ["grouped_study"]


@kind("grouped")
def grouped_study(study: Study) -> Findings:
    """Curves by order of magnitude of the suggested maximum (the article's published code)."""
    if study.source is None:
        raise LRRTError(
            "kind=grouped takes the tests of a finished study: name it with study_run_id"
        )
    suggested(study.source)
    groups: dict[int, list[Measured]] = {}
    for each in study.source:
        if each.range is not None:
            groups.setdefault(math.floor(math.log10(each.range.max)), []).append(each)
    groups = dict(sorted(groups.items()))
    panels, rows = [], []
    for power, tests in groups.items():
        curves = stacked([each.curve for each in tests], tests[0].job.plan.smoothing)
        median = np.median(curves.loss, axis=0)
        panels.append(
            Panel(
                f"Maximum from 1e{power} to 1e{power + 1}: {len(tests)} tests",
                LR_AXIS,
                "smoothed training loss",
                (
                    *(Line(curves.lr, row, width=0.7, color="#9db4c8") for row in curves.loss),
                    Line(curves.lr, median, "median", "#1f4e79", 2.5),
                ),
                xlog=True,
                ylim=limits(*curves.loss),
            )
        )
        rows.append(
            {
                "maximum": f"1e{power} to 1e{power + 1}",
                "tests": len(tests),
                "share": len(tests) / len(study.source),
                "first loss": float(np.median([each.curve.loss[0] for each in tests])),
                "lowest smoothed loss": float(np.median(curves.loss.min(axis=1))),
            }
        )
    largest = max(groups, key=lambda power: len(groups[power]))
    title = "Curves grouped by the order of magnitude of their maximum"
    return Findings(
        title,
        "Do tests that suggest very different learning rates look different?",
        [
            f"The suggested maxima of {len(study.source)} tests fall into {len(groups)} orders of "
            f"magnitude; the most common, with {len(groups[largest])} tests, is 1e{largest} to "
            f"1e{largest + 1}."
        ],
        {
            "groups": len(groups),
            "largest_group_share": len(groups[largest]) / len(study.source),
        },
        {"groups": Chart(title, tuple(panels))},
        {"Groups": pd.DataFrame(rows)},
    )
