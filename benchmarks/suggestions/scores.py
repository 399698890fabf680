"""From losses to scores and tables: functions of data frames, nothing is trained here.

Frames have the columns ``problem`` and ``seed``, and of these:

- ``rule``: who suggests, or what is done with a suggestion
- ``lr``: the suggested peak learning rate; NaN for no suggestion
- ``loss``: validation loss after training at it; infinite if it was not finite, NaN where ``lr`` is
- ``kept_loss``: the same of the epoch with the lowest validation loss
- ``initial``: validation loss of the initial weights
- ``best``, ``best_lr``: lowest loss of the grid, and the peak at which it was reached
- ``best_kept``: lowest ``kept_loss`` of the grid
- ``trainings``: steps that were taken, as a multiple of those of one training, without those of
  the first range test; those of further tests count
"""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = [
    "by_words",
    "per_problem",
    "per_verdict",
    "ranking",
    "references",
    "scored",
    "shifts",
    "spread",
]

KEYS = ["problem", "seed"]


def references(grid: pd.DataFrame, initial: pd.DataFrame) -> pd.DataFrame:
    """Return initial loss and best of the grid for each problem and seed.

    ``grid`` has the columns ``lr`` and ``loss``, ``initial`` the column ``initial``.
    """
    best = grid.loc[grid.groupby(KEYS)["loss"].idxmin(), [*KEYS, "lr", "loss"]]
    best = best.rename(columns={"lr": "best_lr", "loss": "best"})
    kept = grid.groupby(KEYS)["kept_loss"].min().rename("best_kept").reset_index()
    return best.merge(kept, on=KEYS).merge(initial, on=KEYS)


def scored(runs: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with ``regret``, ``kept_regret``, ``missing``, ``diverged`` and ``distance``.

    The regret is ``(loss - best) / (initial - best)`` between 0 and 1: the share of what training
    can gain that is lost by the choice of the learning rate. It is 1 without a suggestion, and
    where training diverged: the loss is not finite, or ends above that of the initial weights. The
    other regret is that of the best epoch, against the best epoch of all trainings of the grid.
    The distance is ``|log10(lr / best_lr)|``, in decades.
    """
    runs = runs.merge(reference, on=KEYS, how="left", validate="many_to_one")
    missing = runs["loss"].isna()

    def regret(loss: str, best: str) -> pd.Series:
        lost = (runs[loss] - runs[best]) / (runs["initial"] - runs[best])
        return lost.clip(0, 1).where(~missing, 1.0)

    return runs.assign(
        regret=regret("loss", "best"),
        kept_regret=regret("kept_loss", "best_kept"),
        missing=missing,
        diverged=~missing & ~(runs["loss"] <= runs["initial"]),
        distance=np.log10(runs["lr"] / runs["best_lr"]).abs(),
    )


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each rule of what :func:`scored` returns, the lowest mean regret first.

    ``±`` is the standard error of the mean over the problems.
    """
    by_rule = runs.groupby("rule")
    tuned = runs[runs["problem"].str.startswith("tuned")].groupby("rule")["regret"]
    of_problem = runs.groupby(["rule", "problem"])["regret"].mean()
    table = pd.DataFrame(
        {
            "median": by_rule["regret"].median(),
            "90th percentile": by_rule["regret"].quantile(0.9),
            "mean regret": by_rule["regret"].mean(),
            "±": of_problem.groupby("rule").sem(),
            "mean, best epoch": by_rule["kept_regret"].mean(),
            "90th, best epoch": by_rule["kept_regret"].quantile(0.9),
            "mean, fine-tuning": tuned.mean(),
            "diverged": by_rule["diverged"].sum(),
            "no suggestion": by_rule["missing"].sum(),
            "abs log10(LR / best)": by_rule["distance"].mean(),
        }
    )
    if "trainings" in runs:
        table["trainings"] = by_rule["trainings"].mean()
    return table.sort_values("mean regret").reset_index()


def per_problem(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean regret of every rule, a row, on every problem, a column; best first."""
    table = runs.pivot_table(index="rule", columns="problem", values="regret", sort=False)
    return table.loc[ranking(runs)["rule"]].reset_index().rename_axis(columns=None)


def per_verdict(runs: pd.DataFrame) -> pd.DataFrame:
    """Return number and regret of runs for each ``verdict``, and of all that are not clear.

    ``times clear`` is the mean regret as a multiple of that of the runs whose verdict is clear.
    """
    not_clear = runs[runs["verdict"] != "clear reading"].assign(verdict="all but clear")
    table = by_words(pd.concat([runs, not_clear])).set_index("verdict")
    clear = table["mean regret"].get("clear reading", np.nan)
    return table.assign(**{"times clear": table["mean regret"] / clear}).reset_index()


def by_words(runs: pd.DataFrame) -> pd.DataFrame:
    """Return number and regrets of runs for each ``verdict``, whatever it is about."""
    by_verdict = runs.groupby("verdict", sort=False)
    table = pd.DataFrame(
        {
            "runs": by_verdict.size(),
            "mean regret": by_verdict["regret"].mean(),
            "mean, best epoch": by_verdict["kept_regret"].mean(),
        }
    )
    return table.reset_index()


def spread(suggestions: pd.DataFrame) -> pd.DataFrame:
    """Return how far each rule's suggestions lie apart over the seeds, in decades.

    The interquartile range of log10(lr) over the seeds that have a suggestion, averaged over the
    problems; and the share of suggestions that are missing.
    """
    decades = suggestions.assign(log=np.log10(suggestions["lr"]))
    quartiles = decades.groupby(["rule", "problem"])["log"].quantile([0.25, 0.75]).unstack()
    width = (quartiles[0.75] - quartiles[0.25]).groupby("rule").mean()
    missing = suggestions["lr"].isna().groupby(suggestions["rule"]).mean()
    table = pd.DataFrame({"interquartile range": width, "no suggestion": missing})
    return table.sort_values("interquartile range").reset_index()


def shifts(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return ``shift``, log10(lr after / lr before), for each problem, seed and rule in both.

    It is NaN where either has no suggestion.
    """
    both = before.merge(after, on=[*KEYS, "rule"], suffixes=("_before", "_after"))
    return both.assign(shift=np.log10(both["lr_after"] / both["lr_before"]))
