"""How much of the suggested range to train with: guarded trainings, short ones and long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

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
from lrrt_stage import LRCurve, NoSuggestion, fit_unimodal
from pipeline.training.narrowing import Narrowing

__all__ = [
    "DEFAULT",
    "LONG_GRID",
    "PARTS",
    "POLICIES",
    "THREE_TESTS",
    "narrowed",
    "parted",
    "trained_long",
]

LONG_GRID = np.geomspace(1e-4, 10, 10)
"""Long trainings take long: a coarser grid, fewer seeds, and only the smaller problems
(``trained_long``)."""
DEFAULT, THREE_TESTS = "whole range", "3 initializations, whole range"
"""The default, which narrows nothing; the same for the consensus of three tests."""
POLICIES: dict[str, tuple[str, Narrowing]] = {
    DEFAULT: ("robust", Narrowing()),
    "top 0.1": ("robust", Narrowing("top", 0.1)),
    "top 0.3": ("robust", Narrowing("top", 0.3)),
    "top 0.5": ("robust", Narrowing("top", 0.5)),
    THREE_TESTS: (SEVERAL, Narrowing()),
    "article, whole range": ("article", Narrowing()),
}
"""Name -> rule, and what is left out of the range that it suggests."""
PARTS = (3.0, 4.0, 4.6, 4.8, 5.0, 5.2, 5.4, 6.3, 10.0)
"""What the learning rate of the rise is divided by; by default 5. Those next to it show how far
chance goes."""


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


def parted(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return ranges that end at the learning rate of the rise, divided by each of :data:`PARTS`."""
    rows = []
    for key, curve in measured.items():
        with suppress(NoSuggestion):
            rise = fit_unimodal(curve).rise
            rows += [(*key, f"rise / {part:g}", rise / part / 10, rise / part) for part in PARTS]
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
