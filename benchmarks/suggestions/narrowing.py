"""How much of the suggested range to train with: guarded trainings, short ones and long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks.suggestions import scores
from benchmarks.suggestions.guarded import guarded
from benchmarks.suggestions.regrets import (
    SEVERAL,
    Key,
    Problems,
    agreements,
    grid_references,
    our_suggestions,
)
from benchmarks.suggestions.work import Work
from lrrt_stage import LRCurve
from pipeline.training.narrowing import Narrowing

__all__ = ["LONG_GRID", "POLICIES", "narrowed", "trained_long"]

LONG_GRID = np.geomspace(1e-4, 10, 10)
"""Long trainings take long: a coarser grid, fewer seeds, and none of the two problems of text."""
POLICIES: dict[str, tuple[str, Narrowing]] = {
    "none": ("robust", Narrowing("none")),
    "top 0.1": ("robust", Narrowing("top", 0.1)),
    "top 0.3": ("robust", Narrowing("top", 0.3)),
    "top 0.5": ("robust", Narrowing("top", 0.5)),
    "three tests, top 0.1": (SEVERAL, Narrowing("top", 0.1)),
    "article, none": ("article", Narrowing("none")),
}
"""Name -> rule, and what is left out of the range that it suggests."""


def narrowed(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return the ranges to train with: ``problem, seed, rule, lr_min, lr``; a rule is a policy."""
    found = {key: our_suggestions(curve) for key, curve in measured.items()}
    several = agreements(found)
    rows = []
    for key, by_rule in found.items():
        for policy, (rule, narrow) in POLICIES.items():
            suggested = several[key] if rule == SEVERAL else by_rule[rule]
            lr_range = None if suggested is None else narrow(suggested)
            ends = (np.nan, np.nan) if lr_range is None else (lr_range.min, lr_range.max)
            rows.append((*key, policy, *ends))
    return pd.DataFrame(rows, columns=["problem", "seed", "rule", "lr_min", "lr"])


def trained_long(
    work: Work,
    problems: Problems,
    measured: Mapping[Key, LRCurve],
    ranges: pd.DataFrame,
    seeds: int,
    grid: Sequence[float],
) -> pd.DataFrame:
    """Return long guarded trainings by each policy, as :func:`scores.scored` does.

    Their regret is against the best long training of the ``grid``.
    """
    few = {name: each for name, each in problems.items() if each.trained_long}
    reference = grid_references(work, few, seeds, grid, long=True)
    ranges = ranges[ranges["problem"].isin(few) & (ranges["seed"] < seeds)]
    return scores.scored(guarded(work, few, measured, ranges, long=True), reference)
