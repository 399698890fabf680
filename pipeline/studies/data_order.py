"""How much of the spread of a suggestion is due to the order of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.charts import Bars, Chart, Panel
from pipeline.jobs.jobs import RangeTestResult
from pipeline.studies.figures import band_panel, tests_table
from pipeline.studies.ranges import summarize
from pipeline.studies.statistics import Decomposition, decompose
from pipeline.studies.study import Findings, Study, counted, kind, suggested

__all__ = ["data_order_study"]


from pipeline.studies.initializations import (
    quantiles_table,
    spread_findings,
    spread_sentence,
    varied_jobs,
)


@kind("data-order")
def data_order_study(study: Study) -> Findings:
    """Many tests on the same weights in other data orders, beside as many with new weights.

    The published code of the article compares the two; here the difference of their variances is
    what the initialisation adds.
    """
    count = study.tests(20)
    varied = varied_jobs(study, count)
    # Orders that the other tests do not use, so that the two samples are independent.
    ordered = [
        study.job(
            f"order {index}",
            {
                "group": "same weights",
                "seed": study.task.seed,
                "data_seed": study.task.data_seed + count + index,
            },
            data_seed=study.task.data_seed + count + index,
        )
        for index in range(count)
    ]
    tests = study.measure([*varied, *ordered])
    groups = {
        name: [each for each in tests if each.job.labels["group"] == name]
        for name in ("new weights", "same weights")
    }
    for name, members in groups.items():
        if len(members) < 2:
            left = counted(len(members), "test")
            raise LRRTError(
                f"{left} with {name} did not fail, 2 are needed: see the runs of the others"
            )
    new, same = groups["new weights"], groups["same weights"]
    parts = decompose(_log_maxima(new), _log_maxima(same))
    found = spread_findings(
        same,
        "The same weights, another order of the data",
        "How far does the suggestion move on the very same weights, and how much of the spread is "
        "due to initialisation?",
    )
    panels = tuple(band_panel(members, f"{name}, new order") for name, members in groups.items())
    return replace(
        found,
        sentences=[
            *found.sentences,
            spread_sentence("With new weights as well", suggested(new)),
            _decomposition_sentence(parts),
        ],
        metrics={
            **found.metrics,
            "order_share": parts.order_share,
            "order_share_low": parts.low,
            "order_share_high": parts.high,
            "init_share": parts.init_share,
            "total_sd_decades": math.sqrt(parts.total_variance),
            "order_sd_decades": math.sqrt(parts.order_variance),
        },
        charts={
            **found.charts,
            "both": Chart("New weights beside the same weights", panels),
            "shares": _shares_chart(parts),
        },
        tables={
            **found.tables,
            "Suggested ranges, new weights": quantiles_table(summarize(suggested(new))),
            "Variance of log10(max LR)": _parts_table(parts),
            "Tests": tests_table(tests),
        },
    )


def _log_maxima(tests: Sequence[RangeTestResult]) -> list[float]:
    return [math.log10(each.max) for each in suggested(tests, at_least=2)]


def _decomposition_sentence(parts: Decomposition) -> str:
    if math.isnan(parts.order_share):
        return "With new weights all maxima are equal: there is no variance to divide."
    caveat = "The order's part was measured on one initialisation alone."
    if parts.order_variance > parts.total_variance:
        caveat += " It varied more than both together, so initialisation is taken to add nothing."
    return (
        f"Of the variance of log10(max LR) over new weights and orders, {parts.init_share:.0%} is "
        f"due to initialisation and {parts.order_share:.0%} to data order (90 % interval of the "
        f"latter: {parts.low:.0%} to {parts.high:.0%}). {caveat}"
    )


def _shares_chart(parts: Decomposition) -> Chart:
    shares = np.array([parts.order_share, parts.init_share])
    # A percentile interval need not hold the share itself; an error bar that is drawn has to.
    low = np.minimum(shares, [parts.low, 1 - parts.high])
    high = np.maximum(shares, [parts.high, 1 - parts.low])
    bars = Bars(["data order", "initialisation"], shares, low, high)
    title = "Share of the variance of log10(max LR), with 90 % intervals"
    return Chart(title, (Panel("", ylabel="share", items=(bars,), ylim=(0, 1.02)),))


def _parts_table(parts: Decomposition) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "source": ["data order", "initialisation", "both"],
            "variance, decades²": [
                parts.order_variance,
                parts.init_variance,
                parts.total_variance,
            ],
            "share": [parts.order_share, parts.init_share, 1.0],
        }
    )
