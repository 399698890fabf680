"""What smoothing does to a suggestion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import AVERAGES, RULES, LRCurve, LRRange, NoSuggestion, Smoothing, suggest
from lrrt_stage.plots import drawing
from lrrt_stage.rules.registry import smoothed_loss
from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from pipeline.studies.curves import drawable, label_losses, lag_of_minimum, plot_published
from pipeline.studies.statistics import coverage
from pipeline.studies.study import Findings, Study

__all__ = ["smoothing_study"]

STYLES: dict[str, dict[str, Any]] = {
    average: {"color": color, "ls": style}
    for average, color, style in zip(AVERAGES, drawing.COLORS, ("-", "--", ":"), strict=False)
}


def smoothing_study(study: Study) -> Findings:
    """One test, read with each of the three averages at several β (article, Fig 3)."""
    betas = study.options.list_of("betas", float)
    smoothings = [Smoothing(average, beta) for average in AVERAGES for beta in betas]
    (test,) = drawable(study.measure([study.job("test", {})]))
    rule = test.reading.rule
    table = pd.DataFrame([_read(test.curve, smoothing, rule) for smoothing in smoothings])
    now = _read(test.curve, study.plan.smoothing, rule)
    answered = table.dropna(subset=["lr_min", "lr_max"])
    ranges = [LRRange(*ends) for ends in answered[["lr_min", "lr_max"]].to_numpy().tolist()]
    moved_min, moved_max = (
        math.log10(answered[end].max() / answered[end].min()) if len(answered) > 1 else math.nan
        for end in ("lr_min", "lr_max")
    )
    covered, sentence = coverage(ranges, len(table), "averages")
    without = table["reason"][~table.index.isin(answered.index)]
    return Findings(
        "What smoothing does to the suggestion",
        "How far does each average lag behind the loss, and how far does that move the suggested "
        "range?",
        [
            _lag_sentence(study.plan.smoothing, now),
            f"Of {len(table)} averages {len(answered) or 'none'} has a suggestion ({rule}), "
            f"too few to compare. The first without: {without.iloc[0]}."
            if len(answered) < 2
            else f"Over the {len(answered)} of {len(table)} averages that have a suggestion "
            f"({rule}), the maximum moves by {moved_max:.2g} decades and the minimum by "
            f"{moved_min:.2g}.",
        ],
        f"{_advice(rule, moved_max)} {sentence}".strip(),
        {
            "lag_decades": now["lag_decades"],
            "lr_max_moved_decades": moved_max,
            "lr_min_moved_decades": moved_min,
            **covered,
        },
        {"averages": _averages_figure(study, test.curve.finite, table)},
        {"Averages": table},
    )


def _read(curve: LRCurve, smoothing: Smoothing, rule: str) -> dict[str, Any]:
    """Return what is read from the curve with an average; NaN where there is nothing, and why."""
    row: dict[str, Any] = {"average": smoothing.average, "beta": smoothing.beta}
    row |= dict.fromkeys(("lr_min", "lr_max", "lag_decades"), math.nan)
    row["reason"] = ""
    try:
        found = suggest(curve, rule, smoothing)
        row |= {"lr_min": found.min, "lr_max": found.max}
    except NoSuggestion as reason:
        row["reason"] = str(reason)
    # There may be a suggestion and no lag, where the lag-free average is still falling; and the
    # other way round.
    try:
        row["lag_decades"] = lag_of_minimum(curve, smoothing)
    except NoSuggestion as reason:
        row["reason"] = row["reason"] or str(reason)
    return row


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
        f"{'before' if lag < 0 else 'after'} a lag-free average does."
    )


def _averages_figure(study: Study, curve: LRCurve, table: pd.DataFrame) -> Figure:
    betas = sorted(set(table["beta"]))
    figure, axes = drawing.new_figure(heights=[3.3] * len(betas))
    for ax, beta in zip(axes, betas, strict=True):
        plot_published(study.task, ax)
        ax.plot(curve.lr, curve.loss, color=drawing.PALE, lw=1, label="loss of each batch")
        rows = table[table["beta"] == beta]
        for average, maximum in zip(rows["average"], rows["lr_max"], strict=True):
            smoothed = Smoothing(average, beta)(curve.loss)
            ax.plot(curve.lr, smoothed, lw=2, label=average, **STYLES[average])
            if np.isfinite(maximum):
                ax.axvline(maximum, lw=1.3, **STYLES[average])
        title = f"β = {beta:g}; vertical: the maximum that is suggested"
        label_losses(ax, title, "training loss", [curve.loss])
        ax.sharex(axes[0])
    drawing.legend_below(axes[-1])
    return drawing.finished(figure)
