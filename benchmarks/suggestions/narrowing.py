"""How much of the suggested range to train with: guarded trainings, short ones and long ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks.suggestions import scores
from benchmarks.suggestions.guarded import guarded
from benchmarks.suggestions.regrets import Key, Problems, grid_references, our_suggestions
from benchmarks.suggestions.work import Work
from lrrt_stage import LRCurve, LRRange
from pipeline.training.narrowing import Narrowing

__all__ = ["LONG_GRID", "POLICIES", "compared", "narrowed"]

LONG_GRID = np.geomspace(1e-4, 10, 10)
"""Long trainings take long: a coarser grid, fewer seeds, and none of the two problems of text."""


def _third(suggested: LRRange) -> LRRange:
    """Return the range up to a third of its maximum; a decade where its minimum lies above that."""
    peak = suggested.max / 3
    return LRRange(suggested.min, peak) if suggested.min < peak else LRRange.decade_below(peak)


POLICIES: dict[str, tuple[str, Callable[[LRRange], LRRange]]] = {
    "robust, none": ("robust", Narrowing("none")),
    "robust, top 0.1": ("robust", Narrowing("top", 0.1)),
    "robust, top 0.3": ("robust", Narrowing("top", 0.3)),
    "robust, top 0.5": ("robust", Narrowing("top", 0.5)),
    "robust, both 0.3": ("robust", Narrowing("both", 0.3)),
    "article, none": ("article", Narrowing("none")),
    "article, a third of the maximum": ("article", _third),
}
"""Name -> rule, and function from the range that it suggests to the one to train with."""


def narrowed(measured: Mapping[Key, LRCurve]) -> pd.DataFrame:
    """Return the ranges to train with: ``problem, seed, rule, lr_min, lr``; a rule is a policy."""
    rows = []
    for key, curve in measured.items():
        found = our_suggestions(curve)
        for policy, (rule, narrow) in POLICIES.items():
            suggested = found[rule]
            lr_range = None if suggested is None else narrow(suggested)
            ends = (np.nan, np.nan) if lr_range is None else (lr_range.min, lr_range.max)
            rows.append((*key, policy, *ends))
    return pd.DataFrame(rows, columns=["problem", "seed", "rule", "lr_min", "lr"])


def compared(
    work: Work,
    problems: Problems,
    measured: Mapping[Key, LRCurve],
    reference: pd.DataFrame,
    long_seeds: int,
    long_grid: Sequence[float],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return short guarded trainings and long ones by each policy, as :func:`scores.scored` does.

    ``reference`` is that of the short trainings. The regret of a long training is against the
    best long training of ``long_grid``.
    """
    ranges = narrowed(measured)
    short = scores.scored(guarded(work, problems, measured, ranges), reference)
    few = {name: each for name, each in problems.items() if each.trained_long}
    long_reference = grid_references(work, few, long_seeds, long_grid, long=True)
    ranges = ranges[ranges["problem"].isin(few) & (ranges["seed"] < long_seeds)]
    long = guarded(work, few, measured, ranges, long=True)
    return short, scores.scored(long, long_reference)
