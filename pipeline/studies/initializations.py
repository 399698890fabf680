"""How much a suggestion depends on the initial weights and the order of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import stats

from lrrt_stage import LRRange
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.curves import bands_figure, ranges_figure
from pipeline.studies.report import tests_table
from pipeline.studies.statistics import Estimate, coverage, order_share, overlap, quantiles
from pipeline.studies.study import Findings, Study, by_label, counted, suggested

__all__ = ["data_order_study", "initializations_study", "varied_jobs"]


def initializations_study(study: Study) -> Findings:
    """Many tests, with new initial weights and a new data order each (article, Fig 4 and 5)."""
    return _spread_findings(
        study.measure(varied_jobs(study, study.tests(20))),
        "Different initial weights, different suggestions?",
        "How far does the suggested range move when only the random initial weights and the order "
        "of the data change?",
        "initializations",
    )


def data_order_study(study: Study) -> Findings:
    """Many tests on the same weights in different data orders, beside as many with new weights.

    The published code of the article compares the two; here the difference of their variances is
    what the initialisation adds.
    """
    count = study.tests(20)
    jobs = varied_jobs(study, count)
    for index in range(count):
        # Orders that the other tests do not use, so that the two samples are independent.
        data_seed = study.task.data_seed + count + index
        labels = {"group": "same weights", "seed": study.task.seed, "data_seed": data_seed}
        jobs.append(study.job(f"order {index}", labels, data_seed=data_seed))
    tests = study.measure(jobs)
    groups = by_label(tests, "group")
    new, same = (groups.get(name, []) for name in ("new weights", "same weights"))
    new_maxima, same_maxima = (
        [math.log10(lr_range.max) for lr_range in suggested(tests, at_least=2)]
        for tests in (new, same)
    )
    share = order_share(new_maxima, same_maxima)
    found = _spread_findings(
        same,
        "The same weights, different orders of the data",
        "How far does the suggestion move on the very same weights, and how much of the spread is "
        "due to initialisation?",
        "data-order",
    )
    both = {"New weights, different orders": new, "Same weights, different orders": same}
    return replace(
        found,
        sentences=[
            *found.sentences,
            _spread_sentence("With new weights as well", suggested(new)),
            _share_sentence(share),
        ],
        metrics={
            **found.metrics,
            "order_share": share.value,
            "order_share_low": share.low,
            "order_share_high": share.high,
            "init_share": 1 - share.value,
            "total_sd_decades": float(np.std(new_maxima, ddof=1)),
            "order_sd_decades": float(np.std(same_maxima, ddof=1)),
        },
        figures={**found.figures, "both": bands_figure(both)},
        tables={
            **found.tables,
            "Suggested ranges, new weights": quantiles(suggested(new)).reset_index(names="end"),
            "Tests": tests_table(tests),
        },
    )


def varied_jobs(study: Study, count: int) -> list[RangeTestJob]:
    """Return ``count`` tests with new initial weights and a new data order each."""
    require(
        not study.task.initial.startswith("file:"),
        f"kind={study.options.kind} compares weights of several seeds, but init="
        f"{study.task.init!r} gives the same to all: use an initialiser",
    )
    jobs = []
    for index in range(count):
        seeds = {"seed": study.task.seed + index, "data_seed": study.task.data_seed + index}
        labels = {"group": "new weights", **seeds}
        jobs.append(study.job(f"seed {seeds['seed']}", labels, **seeds))
    return jobs


def _spread_findings(
    tests: Sequence[RangeTestResult], title: str, question: str, vary: str
) -> Findings:
    """Return what tests that differ in seeds alone say about the spread of the suggestion.

    ``vary`` is the option of ``lrrt`` under which several tests differ as these do.
    """
    found = suggested(tests, at_least=2)
    by_magnitude = _by_magnitude(tests)
    ends = quantiles(found)
    pairs = np.array([overlap(one, other) for one, other in combinations(found, 2)])
    clear = sum(test.reading.chosen.confidence.clear for test in tests)
    without = len(tests) - len(found)
    covered, sentence = coverage(found, len(tests))
    return Findings(
        title,
        question,
        [
            _spread_sentence(f"Of {len(found)} tests", found),
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
            "curves": bands_figure({title: tests}),
            "ranges": ranges_figure(tests),
            # A single group is what the curves show.
            **({"groups": bands_figure(by_magnitude)} if len(by_magnitude) > 1 else {}),
        },
        {"Suggested ranges": ends.reset_index(names="end"), "Tests": tests_table(tests)},
    )


def _by_magnitude(tests: Sequence[RangeTestResult]) -> dict[str, list[RangeTestResult]]:
    """Return the tests by the order of magnitude of the maximum that they suggest.

    The published code of the article draws the curves of these groups.
    """
    groups: dict[int, list[RangeTestResult]] = {}
    for test in tests:
        if test.range is not None:
            # A power of ten begins its own order; the last digits depend on the machine.
            power = math.floor(round(math.log10(test.range.max), 9))
            groups.setdefault(power, []).append(test)
    return {f"Maximum from 1e{power} to 1e{power + 1}": groups[power] for power in sorted(groups)}


def _spread_sentence(tests: str, found: Sequence[LRRange]) -> str:
    """Return the quantiles of suggested ranges as a sentence that begins with ``tests``."""
    ends = quantiles(found)
    low, high = ends.loc["min"], ends.loc["max"]
    return (
        f"{tests}, the median range is {low['median']:.3g} to {high['median']:.3g}; 80 % of the "
        f"minima lie between {low['q10']:.3g} and {low['q90']:.3g}, of the maxima between "
        f"{high['q10']:.3g} and {high['q90']:.3g}, a factor of {high['q90'] / high['q10']:.3g}."
    )


def _share_sentence(share: Estimate) -> str:
    if math.isnan(share.value):
        return "With new weights all maxima are equal: there is no variance to divide."
    caveat = "The order's part was measured on one initialisation alone."
    if share.value == 1:
        caveat += " It varied as much as both together, so initialisation is taken to add nothing."
    return (
        f"Of the variance of log10(max LR) over new weights and orders, {1 - share.value:.0%} is "
        f"due to initialisation and {share.value:.0%} to data order (90 % interval of the latter: "
        f"{share.low:.0%} to {share.high:.0%}). {caveat}"
    )
