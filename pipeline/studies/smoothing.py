"""What smoothing does to a suggestion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import (
    AVERAGES,
    RULES,
    LRCurve,
    LRRange,
    NoSuggestion,
    Smoothing,
    mean_age,
    suggest,
)
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL
from lrrt_stage.rules.descent import SKIP_FIRST, find_descent
from lrrt_stage.rules.registry import smoothed_loss
from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from pipeline.studies.curves import lag_of_minimum
from pipeline.studies.figures import drawable, plot_published
from pipeline.studies.ranges import coverage
from pipeline.studies.study import Findings, Study, kind

__all__ = ["smoothing_study"]

STYLES = dict(
    zip(
        AVERAGES,
        ((drawing.BLUE, "-"), (drawing.VERMILION, "--"), (drawing.GREEN, ":")),
        strict=True,
    )
)


@kind("smoothing", one_test=True)
def smoothing_study(study: Study) -> Findings:
    """One test, read with each of the three averages at several β (article, Fig 3)."""
    betas = study.options.list_of("betas", float)
    smoothings = [Smoothing(average, beta) for average in AVERAGES for beta in betas]
    (test,) = drawable(study.measure([study.job("test", {})]))
    table = pd.DataFrame([_read(test.curve, smoothing, test.rule) for smoothing in smoothings])
    now = _read(test.curve, study.plan.smoothing, test.rule)
    moved = {end: _decades(table[end]) for end in ("lr_min", "lr_max")}
    ranges = [LRRange(*ends) for ends in table[["lr_min", "lr_max"]].dropna().to_numpy().tolist()]
    covered, sentence = coverage(ranges, len(table), "averages") if ranges else ({}, "")
    return Findings(
        "What smoothing does to the suggestion",
        "How far does each average lag behind the loss, and how far does that move the suggested "
        "range?",
        [_lag_sentence(study.plan.smoothing, now), _moved_sentence(table, test.rule, moved)],
        f"{_advice(test.rule, moved['lr_max'])} {sentence}".strip(),
        {
            "lag_decades": now["lag_decades"],
            "age_decades": now["age_decades"],
            "lr_max_moved_decades": moved["lr_max"],
            "lr_min_moved_decades": moved["lr_min"],
            **{
                f"lag_decades.{smoothing.average}.{smoothing.beta:g}": lag
                for smoothing, lag in zip(smoothings, table["lag_decades"], strict=True)
            },
            **covered,
        },
        {
            "averages": _averages_figure(study, test.curve.finite, table),
            "lags": _lags_figure(table),
        },
        {"Averages": table},
    )


def _read(curve: LRCurve, smoothing: Smoothing, rule: str) -> dict[str, Any]:
    """Return what is read from the curve with an average; NaN where there is nothing, and why."""
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
        _, _, lowest = find_descent(curve, smoothing)
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


def _advice(rule: str, moved: float) -> str:
    if RULES[rule].reads is not smoothed_loss:
        return f"Keep the rule {rule}, which reads no average: its suggestion does not depend on β."
    if math.isnan(moved):
        return "Look at the curve, then at the data and the loss."
    if moved > CLEAR_DECADES:
        return (
            "Use the rule robust, which reads no average, or the smallest β that still evens out "
            "the noise of the batches."
        )
    return "Keep the average: on this curve the suggestion hardly depends on it."


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
            f"compare. The first without: {reason}."
        )
    which = f"all {answered}" if answered == len(table) else f"the {answered} of {len(table)}"
    return (
        f"Over {which} averages that have a suggestion ({rule}), the maximum moves by "
        f"{moved['lr_max']:.2g} decades and the minimum by {moved['lr_min']:.2g}."
    )


def _averages_figure(study: Study, curve: LRCurve, table: pd.DataFrame) -> Figure:
    betas = sorted(set(table["beta"]))
    figure, axes = drawing.new_figure(heights=[3.3] * len(betas))
    for ax, beta in zip(axes, betas, strict=True):
        plot_published(study.task, ax)
        ax.plot(curve.lr, curve.loss, color=drawing.PALE, lw=1, label="loss of each batch")
        rows = table[table["beta"] == beta]
        for average, maximum in zip(rows["average"], rows["lr_max"], strict=True):
            color, style = STYLES[average]
            smoothed = Smoothing(average, beta)(curve.loss)
            ax.plot(curve.lr, smoothed, color=color, ls=style, lw=2, label=average)
            if np.isfinite(maximum):
                ax.axvline(maximum, color=color, ls=style, lw=1.3)
        title = f"β = {beta:g}; vertical: the maximum that is suggested"
        drawing.label_axes(ax, title, LR_LABEL, "training loss", log="x")
        ax.set_ylim(*drawing.loss_limits(curve.loss))
        ax.sharex(axes[0])
    drawing.legend_below(axes[-1])
    return drawing.finished(figure)


def _lags_figure(table: pd.DataFrame) -> Figure:
    panels = {
        "lag_decades": ("How late the minimum is found", "decades of LR"),
        "age_decades": ("Mean age of the losses in it", "decades of LR"),
        "lr_max": ("Suggested maximum", LR_LABEL),
        "lr_min": ("Suggested minimum", LR_LABEL),
    }
    figure, axes = drawing.new_figure(heights=[3.2, 3.2], columns=2, width=4.6)
    for ax, (column, (title, ylabel)) in zip(axes, panels.items(), strict=True):
        drawing.label_axes(ax, title, "β", ylabel, log="y" if column.startswith("lr") else "")
        for average, part in table.groupby("average", sort=False):
            color, style = STYLES[str(average)]
            ax.plot(
                part["beta"], part[column], "o", color=color, ls=style, ms=4, label=str(average)
            )
        known = table[column].dropna()
        if column.startswith("lr") and len(known):
            # At least two decades, so that steps of the ramp do not look like differences.
            ax.set_ylim(known.min() / 10, known.max() * 10)
        elif len(known):
            ax.set_ylim(min(0.0, 1.1 * known.min()), max(1.15 * known.max(), 0.1))
    drawing.legend_below(axes[2])
    return drawing.finished(figure)
