"""Which ingredient of a recipe moves the suggestion, and by how far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.charts import Chart, Interval, Mark, Panel
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.figures import LR_AXIS, tests_table
from pipeline.studies.ranges import summarize
from pipeline.studies.statistics import paired_effect
from pipeline.studies.study import Findings, Study, counted, kind, suggested
from pipeline.task.recipes import published_ranges, steps

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
    way = [(name, _free(options, study)) for name, options in steps(FROM, TO)]
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
    suggested(tests)
    effects = _effects_table(names, by_step)
    single = effects[:-1].dropna(subset=["decades"])
    sentences = [_total_sentence(effects.iloc[-1])]
    if len(single):
        sentences.append(_largest_sentence(single.iloc[int(single["decades"].abs().argmax())]))
    without = sum(each.range is None for each in tests)
    if without:
        sentences.append(f"{without} of {len(tests)} tests gave no suggestion.")
    return Findings(
        "From one recipe to the other",
        "The article's Keras and fast.ai programs suggest different ranges for one network. Which "
        "of the ingredients in which they differ moves the suggestion?",
        sentences,
        dict(zip("effect_decades." + effects["ingredient"], effects["decades"], strict=True)),
        {"effects": _effects_chart(effects), "ranges": _ranges_chart(study, names, by_step)},
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
        row = {"ingredient": name.removeprefix("+ "), "seeds": len(shared)}
        if shared:
            effect = paired_effect([before[s] for s in shared], [after[s] for s in shared])
            row |= {"decades": effect.mean, "low": effect.low, "high": effect.high}
        else:
            row |= {"decades": math.nan, "low": math.nan, "high": math.nan}
        rows.append(row)
    return pd.DataFrame(rows)


def _effects_chart(effects: pd.DataFrame) -> Chart:
    rows = Interval(
        list(effects["ingredient"]),
        effects["low"].to_numpy(),
        effects["high"].to_numpy(),
        effects["decades"].to_numpy(),
        name="mean, 90 % interval",
    )
    title = f"What each ingredient does to the suggested maximum, {FROM} to {TO}"
    return Chart(
        title,
        (
            Panel(
                "",
                "decades of learning rate",
                items=(rows, Mark(0.0)),
            ),
        ),
    )


def _ranges_chart(study: Study, names: list[str], by_step: list[list[RangeTestResult]]) -> Chart:
    found = [
        (name, summarize(suggested(tests)))
        for name, tests in zip(names, by_step, strict=True)
        if any(each.range is not None for each in tests)
    ]
    rows = [
        Interval(
            [name for name, _ in found],
            np.array([each.min_median for _, each in found]),
            np.array([each.max_median for _, each in found]),
            name="range between the medians",
        )
    ]
    published = published_ranges(study.task)
    if published:
        rows.append(
            Interval(
                list(published),
                np.array([each.min for each in published.values()]),
                np.array([each.max for each in published.values()]),
                name="published",
            )
        )
    title = "Suggested range after each step"
    return Chart(title, (Panel("", LR_AXIS, items=tuple(rows), xlog=True),))
