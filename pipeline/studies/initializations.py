"""How much a suggestion depends on the initial weights and the order of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from lrrt_stage import LRRange
from lrrt_stage.plots import drawing
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.curves import curves_figure, ranges_figure
from pipeline.studies.statistics import coverage, overlaps, quantiles
from pipeline.studies.study import Findings, Study, counted, kind, suggested
from pipeline.studies.tables import tests_table

__all__ = ["initializations_study", "spread_findings", "spread_sentence", "varied_jobs"]


@kind("initializations", 4)
def initializations_study(study: Study) -> Findings:
    """Many tests, with new initial weights and a new data order each (article, Fig 4 and 5)."""
    return spread_findings(
        study.measure(varied_jobs(study, study.tests(20))),
        "Different initial weights, different suggestions?",
        "How far does the suggested range move when only the random initial weights and the order "
        "of the data change?",
        "initializations",
    )


def varied_jobs(study: Study, count: int) -> list[RangeTestJob]:
    """Return ``count`` tests with new initial weights and a new data order each."""
    study.require_drawn_weights()
    jobs = []
    for index in range(count):
        seeds = {"seed": study.task.seed + index, "data_seed": study.task.data_seed + index}
        labels = {"group": "new weights", **seeds}
        jobs.append(study.job(f"seed {seeds['seed']}", labels, **seeds))
    return jobs


def spread_findings(
    tests: Sequence[RangeTestResult], title: str, question: str, vary: str
) -> Findings:
    """Return what tests that differ in seeds alone say about the spread of the suggestion.

    ``vary`` is the option of ``lrrt`` under which several tests differ as these do.
    """
    found = suggested(tests, at_least=2)
    ends, matrix = quantiles(found), overlaps(found)
    pairs = matrix[np.triu_indices(len(found), 1)]
    clear = sum(test.reading.chosen.confidence.clear for test in tests)
    without = len(tests) - len(found)
    covered, sentence = coverage(found, len(tests))
    return Findings(
        title,
        question,
        [
            spread_sentence(f"Of {len(found)} tests", found),
            f"Of {counted(len(pairs), 'pair')} of ranges, {np.mean(pairs == 0):.0%} do not overlap "
            f"at all; the mean overlap is {pairs.mean():.0%} of the two ranges together.",
            f"Taken alone, {clear} of {len(tests)} tests have a clear suggestion"
            f"{f', and {without} have none' if without else ''}.",
        ],
        f"{sentence} Train with it, or let the range test itself look for such a maximum: "
        f"lrrt --tests 5 --vary {vary}.",
        {
            "tests": len(tests),
            "clear_tests": clear,
            "without_suggestion": without,
            **{
                f"{end}_{name}": value for end, row in ends.T.items() for name, value in row.items()
            },
            "max_iqr_decades": float(stats.iqr([np.log10(lr_range.max) for lr_range in found])),
            "share_disjoint": float(np.mean(pairs == 0)),
            "mean_overlap": float(pairs.mean()),
            **covered,
        },
        {
            "curves": curves_figure(tests, title),
            "ranges": ranges_figure(tests),
            "overlaps": _overlaps_figure(matrix, tests),
        },
        {"Suggested ranges": ends.reset_index(names="end"), "Tests": tests_table(tests)},
    )


def spread_sentence(tests: str, found: Sequence[LRRange]) -> str:
    """Return the quantiles of suggested ranges as a sentence that begins with ``tests``."""
    ends = quantiles(found)
    low, high = ends.loc["min"], ends.loc["max"]
    return (
        f"{tests}, the median range is {low['median']:.3g} to {high['median']:.3g}; 80 % of the "
        f"minima lie between {low['q10']:.3g} and {low['q90']:.3g}, of the maxima between "
        f"{high['q10']:.3g} and {high['q90']:.3g}, a factor of {high['q90'] / high['q10']:.3g}."
    )


def _overlaps_figure(matrix: np.ndarray, tests: Sequence[RangeTestResult]) -> Figure:
    names = [test.job.name for test in tests if test.range is not None]
    figure, (ax,) = drawing.new_figure(heights=[5.5])
    drawing.plot_matrix(ax, matrix, names, names, "shared part of both ranges", limits=(0, 1))
    return drawing.finished(figure, "Overlap of every pair of ranges")
