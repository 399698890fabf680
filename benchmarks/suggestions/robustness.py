"""How far suggestions move with the seed, the number of iterations, and the first learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from benchmarks.suggestions import scores
from benchmarks.suggestions.regrets import Problems, curves, suggested, suggested_by_peers
from benchmarks.suggestions.work import Work

__all__ = ["STARTS", "moved", "over_seeds"]

STARTS = (1e-8, 1e-6, 1e-5)
"""First learning rates that are compared with 1e-7."""


def over_seeds(work: Work, problems: Problems, seeds: int, peers: Sequence[str]) -> pd.DataFrame:
    """Return every rule's and every peer's spread over the seeds, see :func:`scores.spread`."""
    ours = suggested(curves(work, problems, seeds))
    theirs = suggested_by_peers(work, problems, seeds, peers)
    return scores.spread(pd.concat([ours, theirs]))


def moved(
    work: Work, problems: Problems, seeds: int, peers: Sequence[str], iterations: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how far suggestions move when the range test is another.

    The tests are one of more ``iterations`` and those of :data:`STARTS`, against one of 100 from
    1e-7. The first frame has a row for each rule: mean and median magnitude of the movement, in
    decades, and how many pairs of suggestions lack one. The second is the mean magnitude on each
    problem for more iterations. Of the peers only fastai is asked.
    """
    fastai = [peer for peer in peers if peer == "fastai"]

    def suggestions(**test: float | int) -> pd.DataFrame:
        ours = suggested(curves(work, problems, seeds, **test))
        return pd.concat([ours, suggested_by_peers(work, problems, seeds, fastai, **test)])

    before = suggestions()
    tests = {f"{iterations} iterations": {"iterations": iterations}}
    tests |= {f"from {start:g}": {"lr_start": start} for start in STARTS}
    columns = {}
    for name, test in tests.items():
        shift = scores.shifts(before, suggestions(**test))
        shift["shift"] = shift["shift"].abs()
        by_rule = shift.groupby("rule")["shift"]
        columns[f"{name}: mean"] = by_rule.mean()
        columns[f"{name}: median"] = by_rule.median()
        columns[f"{name}: lacking"] = shift["shift"].isna().groupby(shift["rule"]).sum()
        if "iterations" in test:
            each = shift.pivot_table(index="rule", columns="problem", values="shift", sort=False)
    table = pd.DataFrame(columns).sort_values(f"{iterations} iterations: mean")
    return table.reset_index(), each.reset_index().rename_axis(columns=None)
