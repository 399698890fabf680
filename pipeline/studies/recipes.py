"""Which ingredient of a recipe moves the suggestion, and by how far."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from pipeline.studies.figures import name_rows_with_published
from pipeline.studies.ranges import coverage, quantiles
from pipeline.studies.statistics import Estimate, mean_estimate
from pipeline.studies.study import Findings, Study, counted, kind, suggested
from pipeline.studies.tables import tests_table
from pipeline.task.recipes import steps

__all__ = ["recipes_study"]

FROM, TO = "keras", "fastai"


@kind("recipes")
def recipes_study(study: Study) -> Findings:
    """From one published recipe to the other, an ingredient at a time (article, Fig 4 against 5).

    Every step is measured with the same seeds, so that the effect of an ingredient is a mean of
    paired differences.
    """
    study.require_drawn_weights()
    count = study.tests(5)
    way = [(name, _free(options, study)) for name, options in steps()]
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
    names = [name if position == 0 else f"+ {name}" for position, (name, _) in enumerate(way)]
    by_step = [[t for t in tests if t.job.labels["step"] == index] for index in range(len(way))]
    covered, sentence = coverage(suggested(tests), len(tests))
    effects = _effects_table(names, by_step)
    single = effects[:-1].dropna(subset=["decades"])
    sentences = [_total_sentence(effects.iloc[-1])]
    largest = single.iloc[int(single["decades"].abs().argmax())] if len(single) else None
    if largest is not None:
        sentences.append(_largest_sentence(largest))
    return Findings(
        "From one recipe to the other",
        "The article's Keras and fast.ai programs suggest different ranges for one network. Which "
        "of the ingredients in which they differ moves the suggestion?",
        sentences,
        "Repeat the range test after a change of "
        f"{'any ingredient' if largest is None else largest['ingredient']}, which moves the "
        f"suggestion most. Over all steps: {sentence}",
        {
            **dict(zip("effect_decades." + effects["ingredient"], effects["decades"], strict=True)),
            **covered,
        },
        {"effects": _effects_figure(effects), "ranges": _ranges_figure(study, names, by_step)},
        {"Effects": effects, "Tests": tests_table(tests)},
    )


def _total_sentence(row: pd.Series) -> str:
    if math.isnan(row["decades"]):
        return f"No seed has a suggestion both with {FROM} and with {TO}."
    return (
        f"From {FROM} to {TO} the suggested maximum moves by {_effect(row)}, over "
        f"{counted(int(row['seeds']), 'seed')}."
    )


def _largest_sentence(row: pd.Series) -> str:
    if row["decades"] == 0:
        return "No single ingredient moves it."
    unsure = row["low"] <= 0 <= row["high"]
    return (
        f"The largest single step, in this order of steps, is {row['ingredient']}: {_effect(row)}"
        f"{', which may be none' if unsure else ''}."
    )


def _effect(row: pd.Series) -> str:
    moved = f"{row['decades']:+.2f} decades"
    if math.isnan(row["low"]):
        return moved
    return f"{moved} (90 % interval {row['low']:+.2f} to {row['high']:+.2f})"


def _free(options: Mapping[str, Any], study: Study) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in study.fixed}


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


def _effects_table(names: list[str], by_step: list[list[RangeTestResult]]) -> pd.DataFrame:
    """Return the effect of every step, and of all together last, in decades of the maximum."""
    maxima = [
        {t.job.task.seed: math.log10(t.range.max) for t in tests if t.range is not None}
        for tests in by_step
    ]
    pairs = [*zip(names[1:], maxima, maxima[1:], strict=False)]
    rows = []
    for name, before, after in [*pairs, ("all together", maxima[0], maxima[-1])]:
        shared = sorted(before.keys() & after.keys())
        differences = [after[seed] - before[seed] for seed in shared]
        effect = mean_estimate(differences) if shared else Estimate(math.nan)
        ends = {"decades": effect.value, "low": effect.low, "high": effect.high}
        rows.append({"ingredient": name.removeprefix("+ "), "seeds": len(shared), **ends})
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


def _ranges_figure(study: Study, names: list[str], by_step: list[list[RangeTestResult]]) -> Figure:
    medians = {
        name: quantiles(suggested(tests))["median"].to_numpy()
        for name, tests in zip(names, by_step, strict=True)
        if any(test.range is not None for test in tests)
    }
    figure, (ax,) = drawing.new_figure(heights=[1.6 + 0.35 * len(medians)])
    drawing.plot_bars(
        ax,
        np.array([*medians.values()]),
        color=drawing.ORANGE,
        width=8,
        label="between the medians",
    )
    drawing.label_axes(ax, "Suggested range after each step", LR_LABEL, log="x")
    name_rows_with_published(ax, list(medians), study.task)
    drawing.legend_below(ax)
    return drawing.finished(figure)
