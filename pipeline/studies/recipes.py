"""Which ingredient of a recipe moves the suggestion, and by how far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.curves import name_rows_with_published
from pipeline.studies.report import tests_table
from pipeline.studies.statistics import coverage, mean_estimate, quantiles
from pipeline.studies.study import Findings, Study, by_label, counted, kind, suggested
from pipeline.task.recipes import steps

__all__ = ["recipes_study"]

FROM, TO = "keras", "fastai"


@kind("recipes", 10)
def recipes_study(study: Study) -> Findings:
    """From one published recipe to the other, an ingredient at a time (article, Fig 4 against 5).

    Every step is measured with the same seeds, so that the effect of an ingredient is a mean of
    paired differences.
    """
    study.require_drawn_weights()
    count = study.tests(5)
    way = [
        (name, {option: value for option, value in options.items() if option not in study.fixed})
        for name, options in steps()
    ]
    # An ingredient that the user has fixed makes no step.
    way = [way[0], *(after for before, after in pairwise(way) if before[1] != after[1])]
    if len(way) < 2:
        raise LRRTError("every ingredient of the recipes is fixed by an option: give fewer of them")
    tests = study.measure(
        [
            _job(study, position, name, options, offset)
            for position, (name, options) in enumerate(way)
            for offset in range(count)
        ]
    )
    covered, sentence = coverage(suggested(tests), len(tests))
    effects = _effects_table([name for name, _ in way], tests)
    total, single = effects.iloc[-1], effects[:-1].dropna(subset="decades")
    sentences = [
        f"No seed has a suggestion both with {FROM} and with {TO}."
        if math.isnan(total["decades"])
        else f"From {FROM} to {TO} the suggested maximum moves by {_effect(total)}."
    ]
    moves_most = "any ingredient"
    if len(single):
        largest = single.iloc[int(single["decades"].abs().argmax())]
        moves_most = largest["ingredient"]
        unsure = ", which may be none" if largest["low"] <= 0 <= largest["high"] else ""
        sentences.append(
            f"The largest single step, in this order of steps, is {moves_most}: {_effect(largest)}"
            f"{unsure}."
            if largest["decades"] != 0
            else "No single ingredient moves it."
        )
    return Findings(
        "From one recipe to the other",
        "The article's Keras and fast.ai programs suggest different ranges for one network. Which "
        "of the ingredients in which they differ moves the suggestion?",
        sentences,
        f"Repeat the range test after a change of {moves_most}, which moves the suggestion most. "
        f"Over all steps: {sentence}",
        {
            **dict(zip("effect_decades." + effects["ingredient"], effects["decades"], strict=True)),
            **covered,
        },
        {"effects": _effects_figure(effects), "ranges": _ranges_figure(study, tests)},
        {"Effects": effects, "Tests": tests_table(tests)},
    )


def _effect(row: pd.Series) -> str:
    over = counted(int(row["seeds"]), "seed")
    moved = f"{row['decades']:+.2f} decades"
    if math.isnan(row["low"]):
        return f"{moved}, over {over}"
    return f"{moved} (90 % interval {row['low']:+.2f} to {row['high']:+.2f}), over {over}"


def _job(
    study: Study, position: int, name: str, options: Mapping[str, Any], offset: int
) -> RangeTestJob:
    seeds = {"seed": study.task.seed + offset, "data_seed": study.task.data_seed + offset}
    task_options, ramp, smoothing = (
        {field.name: options[field.name] for field in fields(part) if field.name in options}
        for part in (study.task, study.plan.ramp, study.plan.smoothing)
    )
    plan = replace(
        study.plan,
        ramp=replace(study.plan.ramp, **ramp),
        smoothing=replace(study.plan.smoothing, **smoothing),
    )
    labels = {"step": position, "ingredient": name, **seeds}
    job = study.job(f"{name} seed {seeds['seed']}", labels, **task_options, **seeds)
    return replace(job, plan=plan)


def _effects_table(names: Sequence[str], tests: Sequence[RangeTestResult]) -> pd.DataFrame:
    """Return the effect of every step, and of all together last, in decades of the maximum."""
    maxima = tests_table(tests).pivot(index="seed", columns="step", values="lr_max")
    decades = maxima.reindex(columns=range(len(names))).astype(float).map(math.log10)
    pairs = [*pairwise(range(len(names))), (0, len(names) - 1)]
    rows = []
    for name, (before, after) in zip([*names[1:], "all together"], pairs, strict=True):
        differences = (decades[after] - decades[before]).dropna().tolist()
        effect = mean_estimate(differences)
        ends = {"decades": effect.value, "low": effect.low, "high": effect.high}
        rows.append({"ingredient": name, "seeds": len(differences), **ends})
    return pd.DataFrame(rows)


def _effects_figure(effects: pd.DataFrame) -> Figure:
    figure, (ax,) = drawing.new_figure(heights=[1.4 + 0.35 * len(effects)])
    intervals = effects[["low", "high"]].to_numpy()
    drawing.plot_bars(ax, intervals, color=drawing.SKY, width=8, label="90 % interval")
    ax.plot(effects["decades"], range(len(effects)), "o", color=drawing.BLACK, ms=5, label="mean")
    ax.axvline(0, color=drawing.GREY, lw=1)
    title = f"Effect of each ingredient on the suggested maximum, {FROM} to {TO}"
    drawing.label_axes(ax, title, "decades of learning rate")
    drawing.name_rows(ax, list(effects["ingredient"]))
    drawing.legend_below(ax)
    return drawing.finished(figure)


def _ranges_figure(study: Study, tests: Sequence[RangeTestResult]) -> Figure:
    able = [test for test in tests if test.range is not None]
    by_step = by_label(able, "ingredient")
    names = [name if name == FROM else f"+ {name}" for name in by_step]
    medians = np.array([quantiles(suggested(step))["median"] for step in by_step.values()])
    figure, (ax,) = drawing.new_figure(heights=[1.6 + 0.35 * len(medians)])
    label = "between the medians"
    drawing.plot_bars(ax, medians, color=drawing.ORANGE, width=8, label=label)
    drawing.label_axes(ax, "Suggested range after each step", LR_LABEL, log="x")
    name_rows_with_published(ax, names, study.task)
    drawing.legend_below(ax)
    return drawing.finished(figure)
