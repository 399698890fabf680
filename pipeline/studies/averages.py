"""What smoothing does to a suggestion."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lrrt_stage import AVERAGES, LRCurve, NoSuggestion, Smoothing, mean_age, suggest
from lrrt_stage.charts import Chart, Line, Mark, Panel, limits
from lrrt_stage.suggestion import SKIP_FIRST, descent
from pipeline.studies.curves import lag_of_minimum
from pipeline.studies.pictures import LR_AXIS
from pipeline.studies.study import Findings, Study, kind

__all__ = ["smoothing_study"]


@kind("smoothing")
def smoothing_study(study: Study) -> Findings:
    """One test, read with each of the three averages at several β (article, Fig 3)."""
    betas = study.options.list_of("betas", float)
    readings = [Smoothing(average, beta) for average in AVERAGES for beta in betas]
    (test,) = study.measure([study.job("test", {})])
    curve = test.curve.finite
    table = pd.DataFrame([_read(curve, each, test.rule) for each in readings])
    asked = study.plan.smoothing
    now = _read(curve, asked, test.rule)
    maxima = table["lr_max"].dropna()
    moved = math.log10(maxima.max() / maxima.min()) if len(maxima) else math.nan
    return Findings(
        "What smoothing does to the suggestion",
        "How far does each average lag behind the loss, and how far does that move the suggested "
        "range?",
        [
            f"The {asked.average} average with β = {asked.beta:g} finds the minimum of the loss "
            f"{now['lag_decades']:.2g} decades of LR after a lag-free average does; by the age of "
            f"the losses in it, it lags by {now['age_decades']:.2g}.",
            f"Over all {len(table)} averages the suggested maximum ({test.rule}) moves by "
            f"{moved:.2g} decades.",
        ],
        {
            "lag_decades": now["lag_decades"],
            "age_decades": now["age_decades"],
            "lr_max_moved_decades": moved,
            **{
                f"lag_decades.{each.average}.{each.beta:g}": lag
                for each, lag in zip(readings, table["lag_decades"], strict=True)
            },
        },
        {
            "averages": _averages_chart(curve, table, asked.beta),
            "lags": _lags_chart(table),
        },
        {"Averages": table},
    )


def _read(curve: LRCurve, smoothing: Smoothing, rule: str) -> dict[str, Any]:
    """Return what an average reads from the curve; NaN where it has no answer, and why."""
    row: dict[str, Any] = {"average": smoothing.average, "beta": smoothing.beta}
    row |= dict.fromkeys(("lr_min", "lr_max", "lag_decades", "age_decades"), math.nan)
    row["reason"] = ""
    per_iteration = math.log10(curve.lr[-1] / curve.lr[0]) / (len(curve) - 1)
    ages = mean_age(smoothing.average, smoothing.beta, len(curve))
    try:
        _, _, lowest = descent(curve, smoothing)
        row["age_decades"] = float(ages[SKIP_FIRST + lowest] * per_iteration)
        row["lag_decades"] = lag_of_minimum(curve, smoothing)
        found = suggest(curve, rule, smoothing)
        row |= {"lr_min": found.min, "lr_max": found.max}
    except NoSuggestion as reason:
        row["reason"] = str(reason)
    return row


def _averages_chart(curve: LRCurve, table: pd.DataFrame, beta: float) -> Chart:
    nearest = min(table["beta"], key=lambda each: abs(each - beta))
    lines, marks = [], []
    for average in AVERAGES:
        lines.append(Line(curve.lr, Smoothing(average, nearest)(curve.loss), average, width=2.2))
        row = table[(table["average"] == average) & (table["beta"] == nearest)].iloc[0]
        if not math.isnan(row["lr_max"]):
            marks.append(Mark(row["lr_max"], average))
    title = f"Raw loss and the three averages, β = {nearest:g}; dashed: suggested maximum"
    raw = Line(curve.lr, curve.loss, "loss of each batch", "#9db4c8", 1.0)
    return Chart(
        title,
        (
            Panel(
                "",
                LR_AXIS,
                "training loss",
                (raw, *lines, *marks),
                xlog=True,
                ylim=limits(curve.loss),
            ),
        ),
    )


def _lags_chart(table: pd.DataFrame) -> Chart:
    def panel(column: str, title: str, ylabel: str, ylog: bool = False) -> Panel:
        lines = [
            Line(part["beta"].to_numpy(), part[column].to_numpy(), str(average), markers=True)
            for average, part in table.groupby("average", sort=False)
        ]
        return Panel(title, "β", ylabel, tuple(lines), ylog=ylog)

    return Chart(
        "Lag and suggestion over β",
        (
            panel("lag_decades", "How late the minimum is found", "decades of LR"),
            panel("age_decades", "Mean age of the losses in it", "decades of LR"),
            panel("lr_max", "Suggested maximum", LR_AXIS, ylog=True),
            panel("lr_min", "Suggested minimum", LR_AXIS, ylog=True),
        ),
    )
