"""Trainings at suggested learning rates against the best of a grid of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.suggestions import scores
from benchmarks.suggestions.peers import peer_suggestions
from benchmarks.suggestions.problems import Problem
from benchmarks.suggestions.trainings import Recorded, initial_loss, lr_curve, recorded
from benchmarks.suggestions.work import Work
from lrrt_stage import (
    LRCurve,
    LRRange,
    NoSuggestion,
    UnimodalFit,
    confidence,
    find_consensus,
    suggest,
    suggest_all,
)

__all__ = [
    "GRID",
    "SEVERAL",
    "agreements",
    "beside_best",
    "curves",
    "depths",
    "grid_references",
    "our_suggestions",
    "recorded_at",
    "suggested",
    "suggested_by_peers",
    "trained",
    "verdicts",
]

Problems = Mapping[str, Problem]
Key = tuple[str, int]
"""Name of a problem, and a seed."""

SEVERAL = "robust, 3 initializations"
"""The rule robust, by the consensus of three tests with different weights and data orders."""
GRID = np.geomspace(1e-4, 10, 20)[2:]
"""Peaks that are all trained at, to find the best: eighteen from 3.4e-4."""


def curves(
    work: Work, problems: Problems, seeds: int, lr_start: float = 1e-7, iterations: int = 100
) -> dict[Key, LRCurve]:
    """Return the range tests' curves."""
    keys = [(name, seed) for name in problems for seed in range(seeds)]
    calls = [(problems[name], seed, lr_start, iterations) for name, seed in keys]
    title = f"range tests of {iterations} iterations from {lr_start:g}"
    return dict(zip(keys, work.run(lr_curve, calls, title), strict=True))


def our_suggestions(curve: LRCurve) -> dict[str, LRRange | None]:
    """Return what each of our rules suggests, and ``robust`` on the training loss alone."""
    found = {
        rule: None if isinstance(answer, NoSuggestion) else answer
        for rule, answer in suggest_all(curve).items()
    }
    try:
        without = replace(curve, probe_loss=None)
        found["robust, no probe"] = suggest(without)
    except NoSuggestion:
        found["robust, no probe"] = None
    return found


def suggested(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return the peaks that our rules suggest: ``problem, seed, rule, lr``."""
    found = {key: our_suggestions(curve) for key, curve in measured.items()}
    several = {key: {SEVERAL: safe} for key, safe in agreements(found).items()}
    return pd.DataFrame(
        [
            (*key, rule, np.nan if answer is None else answer.max)
            for answers in (found, several)
            for key, by_rule in answers.items()
            for rule, answer in by_rule.items()
        ],
        columns=["problem", "seed", "rule", "lr"],
    )


def agreements(found: Mapping[Key, Mapping[str, LRRange | None]]) -> dict[Key, LRRange | None]:
    """Return what ``robust`` suggests from a seed's test and those of the next two seeds.

    After the last seed comes the first.
    """
    consensus: dict[Key, LRRange | None] = {}
    for name, seed in found:
        seeds = [other for problem, other in found if problem == name]
        here = seeds.index(seed)
        three = [seeds[(here + step) % len(seeds)] for step in range(min(3, len(seeds)))]
        answers = [found[name, each]["robust"] for each in three]
        try:
            consensus[name, seed] = find_consensus(
                [answer or NoSuggestion("it had none") for answer in answers]
            ).range
        except NoSuggestion:
            consensus[name, seed] = None
    return consensus


def suggested_by_peers(
    work: Work, problems: Problems, seeds: int, peers: Iterable[str], **options: float | int
) -> pd.DataFrame:
    """Return the peaks that the peers suggest, in the same columns."""
    keys = [(peer, name, seed) for peer in peers for name in problems for seed in range(seeds)]
    calls = [(peer, problems[name], seed, tuple(options.items())) for peer, name, seed in keys]
    title = " ".join(["peers' range tests", *(f"{k}={v:g}" for k, v in options.items())])
    answers = work.run(peer_suggestions, calls, title)
    return pd.DataFrame(
        [
            (name, seed, rule, np.nan if lr is None else lr)
            for (_, name, seed), found in zip(keys, answers, strict=True)
            for rule, lr in found.items()
        ],
        columns=["problem", "seed", "rule", "lr"],
    ).astype({"lr": float})  # of no peers it would be of objects


def verdicts(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return the verdict on each curve for the rule ``robust``: ``problem, seed, verdict``."""
    return pd.DataFrame(
        [(*key, str(confidence(curve).verdict)) for key, curve in measured.items()],
        columns=["problem", "seed", "verdict"],
    )


def depths(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return by how much the loss of each range test fell, in words as the ``verdict``.

    What an answer gains that is alike for all examples does not count.
    """
    rows = []
    for key, curve in measured.items():
        fit = UnimodalFit.from_curve(curve)
        half = fit.fall >= fit.start / 2
        rows.append((*key, "the loss fell by half" if half else "it fell by less"))
    return pd.DataFrame(rows, columns=["problem", "seed", "verdict"])


def grid_references(
    work: Work, problems: Problems, seeds: int, grid: Sequence[float], long: bool = False
) -> pd.DataFrame:
    """Train at every peak of the grid and return what :func:`scores.references` does."""
    keys = [(name, seed) for name in problems for seed in range(seeds)]
    initial = pd.DataFrame(keys, columns=scores.KEYS)
    calls = [(problems[name], seed) for name, seed in keys]
    initial["initial"] = work.run(initial_loss, calls, "initial losses")
    tried = initial[scores.KEYS].merge(pd.DataFrame({"lr": grid}), how="cross")
    return scores.references(trained(work, problems, tried, long, "grid"), initial)


def beside_best(
    work: Work, problems: Problems, reference: pd.DataFrame, grid: Sequence[float]
) -> pd.DataFrame:
    """Return the trainings one step of the grid beside the best peak: what a near miss loses."""
    rows = []
    for run in reference.itertuples():
        best = list(grid).index(run.best_lr)
        for rule, step in (("below", best - 1), ("above", best + 1)):
            if 0 <= step < len(grid):
                rows.append((run.problem, run.seed, f"one step {rule} the best", grid[step]))
    runs = pd.DataFrame(rows, columns=["problem", "seed", "rule", "lr"])
    return trained(work, problems, runs, False, "beside the best")


def trained(
    work: Work, problems: Problems, suggestions: pd.DataFrame, long: bool, title: str
) -> pd.DataFrame:
    """Return the suggestions with ``loss`` and ``kept_loss`` after one cycle of training at each.

    The cycle starts from ``lr_min`` where there is such a column, else a decade below ``lr``.
    """
    runs = suggestions.assign(loss=np.nan, kept_loss=np.nan)
    made = runs[runs["lr"].notna()]
    ranges = {row.Index: LRRange(*_ends(row)) for row in made.itertuples()}
    records = recorded_at(work, problems, made, ranges, long, title)
    for row, record in records.items():
        runs.loc[row, ["loss", "kept_loss"]] = record.final_loss, record.lowest_loss
    return runs


def recorded_at(
    work: Work,
    problems: Problems,
    runs: pd.DataFrame,
    ranges: Mapping[Any, LRRange],
    long: bool,
    title: str,
) -> dict[Any, Recorded]:
    """Return the training of each row of ``runs`` over its range, by the row's index."""
    calls = []
    for row in runs.itertuples():
        problem = problems[row.problem]
        epochs = problem.long_epochs if long else problem.epochs
        calls.append((problem, row.seed, ranges[row.Index], epochs))
    title = f"{'long ' if long else ''}trainings: {title}"
    return dict(zip(runs.index, work.run(recorded, calls, title), strict=True))


def _ends(row: Any) -> tuple[float, float]:
    return float(getattr(row, "lr_min", row.lr / 10)), float(row.lr)
