"""How much a suggestion depends on the initial weights, and how much on the order of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from lrrt_stage import LRRange
from lrrt_stage.charts import Chart, Heatmap, Panel
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.figures import curves_chart, ranges_chart, tests_table
from pipeline.studies.ranges import RangeSummary, overlaps, share_disjoint, summarize
from pipeline.studies.study import Findings, Study, counted, kind, suggested

__all__ = [
    "initializations_study",
    "quantiles_table",
    "spread_findings",
    "spread_sentence",
    "varied_jobs",
]


@kind("initializations")
def initializations_study(study: Study) -> Findings:
    """Many tests, with new initial weights and a new data order each (article, Fig 4 and 5)."""
    tests = study.measure(varied_jobs(study, study.tests(20)))
    return spread_findings(
        tests,
        "Other initial weights, another suggestion?",
        "How far does the suggested range move when only the random initial weights and the order "
        "of the data change?",
    )


def varied_jobs(study: Study, count: int) -> list[RangeTestJob]:
    """Return ``count`` tests with new initial weights and a new data order each."""
    study.require_drawn_weights()
    return [
        study.job(
            f"seed {study.task.seed + index}",
            {
                "group": "new weights",
                "seed": study.task.seed + index,
                "data_seed": study.task.data_seed + index,
            },
            seed=study.task.seed + index,
            data_seed=study.task.data_seed + index,
        )
        for index in range(count)
    ]


def spread_findings(tests: Sequence[RangeTestResult], title: str, question: str) -> Findings:
    """Return what tests that differ in seeds alone say about the spread of the suggestion."""
    found = suggested(tests, at_least=2)
    summary, apart = summarize(found), share_disjoint(found)
    matrix = overlaps(found)
    pairs = matrix[np.triu_indices(len(found), 1)]
    names = [each.job.name for each in tests if each.range is not None]
    without = len(tests) - len(found)
    return Findings(
        title,
        question,
        [
            spread_sentence(f"Of {len(found)} tests", found),
            f"Of {counted(len(pairs), 'pair')} of ranges, {apart:.0%} do not overlap at all; the "
            f"mean overlap is {pairs.mean():.0%} of the two ranges together.",
            *([f"{without} of {len(tests)} tests gave no suggestion."] if without else []),
        ],
        {
            "tests": len(tests),
            "without_suggestion": without,
            **{name: value for name, value in asdict(summary).items() if name != "count"},
            "share_disjoint": apart,
            "mean_overlap": float(pairs.mean()),
        },
        {
            "curves": curves_chart(tests, title),
            "ranges": ranges_chart(tests, "Suggested range of each test"),
            "overlaps": Chart(
                "Overlap of every pair of ranges",
                (
                    Panel(
                        items=(Heatmap(matrix, names, names, "shared part of both", 0, 1),),
                    ),
                ),
            ),
        },
        {"Suggested ranges": quantiles_table(summary), "Tests": tests_table(tests)},
    )


def spread_sentence(of_what: str, found: Sequence[LRRange]) -> str:
    """Return the quantiles of suggested ranges as a sentence that begins with ``of_what``."""
    summary = summarize(found)
    return (
        f"{of_what}, the median range is {summary.min_median:.3g} to {summary.max_median:.3g}; "
        f"80 % of the minima lie between {summary.min_q10:.3g} and {summary.min_q90:.3g}, of the "
        f"maxima between {summary.max_q10:.3g} and {summary.max_q90:.3g}, a factor of "
        f"{summary.max_q90 / summary.max_q10:.3g}."
    )


def quantiles_table(summary: RangeSummary) -> pd.DataFrame:
    """Return the quantiles of both ends of the ranges, a row for each end."""
    return pd.DataFrame(
        {
            "end": ["min", "max"],
            "10 %": [summary.min_q10, summary.max_q10],
            "median": [summary.min_median, summary.max_median],
            "90 %": [summary.min_q90, summary.max_q90],
        }
    )
