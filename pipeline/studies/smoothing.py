"""What smoothing does to a suggestion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lrrt_stage import AVERAGES, LRCurve, NoSuggestion, Smoothing, mean_age, suggest
from lrrt_stage.charts import Chart, Item, Line, Mark, Panel, Span, limits
from lrrt_stage.rules.descent import SKIP_FIRST, descent
from pipeline.studies.curves import lag_of_minimum
from pipeline.studies.figures import LR_AXIS, drawable, published_spans
from pipeline.studies.study import Findings, Study, kind

__all__ = ["smoothing_study"]


@kind("smoothing", one_test=True)
def smoothing_study(study: Study) -> Findings:
    """One test, read with each of the three averages at several β (article, Fig 3)."""
    betas = study.options.list_of("betas", float)
    readings = [Smoothing(average, beta) for average in AVERAGES for beta in betas]
    (test,) = drawable(study.measure([study.job("test", {})]))
    table = pd.DataFrame([_read(test.curve, each, test.rule) for each in readings])
    now = _read(test.curve, study.plan.smoothing, test.rule)
    moved = {end: _decades(table[end]) for end in ("lr_min", "lr_max")}
    return Findings(
        "What smoothing does to the suggestion",
        "How far does each average lag behind the loss, and how far does that move the suggested "
        "range?",
        [_lag_sentence(study.plan.smoothing, now), _moved_sentence(table, test.rule, moved)],
        {
            "lag_decades": now["lag_decades"],
            "age_decades": now["age_decades"],
            "lr_max_moved_decades": moved["lr_max"],
            "lr_min_moved_decades": moved["lr_min"],
            **{
                f"lag_decades.{each.average}.{each.beta:g}": lag
                for each, lag in zip(readings, table["lag_decades"], strict=True)
            },
        },
        {
            "averages": _averages_chart(
                test.curve.finite, table, betas, published_spans(study.task)
            ),
            "lags": _lags_chart(table),
        },
        {"Averages": table},
    )


def _read(curve: LRCurve, smoothing: Smoothing, rule: str) -> dict[str, Any]:
    """Return what an average reads from the curve; NaN where it has no answer, and why."""
    row: dict[str, Any] = {"average": smoothing.average, "beta": smoothing.beta}
    row |= dict.fromkeys(("lr_min", "lr_max", "lag_decades", "age_decades"), math.nan)
    row["reason"] = ""
    try:
        found = suggest(curve, rule, smoothing)
        row |= {"lr_min": found.min, "lr_max": found.max}
    except NoSuggestion as reason:
        row["reason"] = str(reason)
    # There may be a suggestion and no lag, where the lag-free average is still falling; and the
    # other way round.
    try:
        _, _, lowest = descent(curve, smoothing)
        row["age_decades"] = _age(curve.finite, smoothing, SKIP_FIRST + lowest)
        row["lag_decades"] = lag_of_minimum(curve, smoothing)
    except NoSuggestion as reason:
        row["reason"] = row["reason"] or str(reason)
    return row


def _age(curve: LRCurve, smoothing: Smoothing, index: int) -> float:
    """Return how many decades below the LR at ``index`` the losses in the average were taken."""
    age = mean_age(smoothing.average, smoothing.beta, len(curve))[index]
    decades = np.log10(curve.lr)
    return float(decades[index] - np.interp(index - age, np.arange(len(curve)), decades))


def _decades(lrs: pd.Series) -> float:
    """Return how far learning rates lie apart; NaN where fewer than two are known."""
    known = lrs.dropna()
    return math.log10(known.max() / known.min()) if len(known) > 1 else math.nan


def _lag_sentence(smoothing: Smoothing, row: dict[str, Any]) -> str:
    name = f"The {smoothing.average} average with β = {smoothing.beta:g}"
    lag = row["lag_decades"]
    if math.isnan(lag):
        return f"{name} has no lag that could be measured: {row['reason']}."
    return (
        f"{name} finds the minimum of the loss {abs(lag):.2g} decades of LR "
        f"{'before' if lag < 0 else 'after'} a lag-free average does. The losses in it were taken "
        f"{row['age_decades']:.2g} decades below, in the mean: a minimum with a steep rise behind "
        "it is found earlier than that, since the rise soon outweighs them."
    )


def _moved_sentence(table: pd.DataFrame, rule: str, moved: dict[str, float]) -> str:
    answered = int(table["lr_max"].notna().sum())
    if answered < 2:
        reason = table.loc[table["lr_max"].isna(), "reason"].iloc[0]
        return (
            f"Of {len(table)} averages {answered or 'none'} has a suggestion ({rule}), too few to "
            f"compare. Another says: {reason}."
        )
    which = f"all {answered}" if answered == len(table) else f"the {answered} of {len(table)}"
    return (
        f"Over {which} averages that have a suggestion ({rule}), the maximum moves by "
        f"{moved['lr_max']:.2g} decades and the minimum by {moved['lr_min']:.2g}."
    )


def _averages_chart(
    curve: LRCurve, table: pd.DataFrame, betas: Sequence[float], published: Sequence[Span]
) -> Chart:
    raw = Line(curve.lr, curve.loss, "loss of each batch", "#9db4c8", 1.0)
    panels = []
    for beta in betas:
        lines = [
            Line(curve.lr, Smoothing(average, beta)(curve.loss), average, width=2.2)
            for average in AVERAGES
        ]
        maxima = table[table["beta"] == beta].dropna(subset=["lr_max"])
        marks = [
            Mark(lr, str(average))
            for average, lr in zip(maxima["average"], maxima["lr_max"], strict=True)
        ]
        items: tuple[Item, ...] = (*published, raw, *lines, *marks)
        ylim = limits(curve.loss)
        panels.append(Panel(f"β = {beta:g}", LR_AXIS, "training loss", items, xlog=True, ylim=ylim))
    title = "Raw loss and the three averages; dashed: the maximum that each suggests"
    return Chart(title, tuple(panels))


def _lags_chart(table: pd.DataFrame) -> Chart:
    def panel(column: str, title: str, ylabel: str) -> Panel:
        lines = [
            Line(part["beta"].to_numpy(), part[column].to_numpy(), str(average), markers=True)
            for average, part in table.groupby("average", sort=False)
        ]
        values = table[column].dropna()
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        if ylabel == LR_AXIS:
            # At least two decades, so that steps of the ramp do not look like differences.
            ylim = (low / 10, high * 10) if low > 0 else None
        else:
            ylim = (min(0.0, 1.1 * low), max(1.15 * high, 0.1))
        return Panel(title, "β", ylabel, tuple(lines), ylog=ylabel == LR_AXIS, ylim=ylim)

    return Chart(
        "Lag and suggestion over β",
        (
            panel("lag_decades", "How late the minimum is found", "decades of LR"),
            panel("age_decades", "Mean age of the losses in it", "decades of LR"),
            panel("lr_max", "Suggested maximum", LR_AXIS),
            panel("lr_min", "Suggested minimum", LR_AXIS),
        ),
    )
