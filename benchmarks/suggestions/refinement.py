"""A search for the peak learning rate inside the suggested range, and what it costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

import optuna
import pandas as pd

from benchmarks.suggestions.guarded import ATTEMPTS, total_steps, watched
from benchmarks.suggestions.problems import Problem
from benchmarks.suggestions.regrets import Key, Problems
from benchmarks.suggestions.trainings import Recorded, recorded
from benchmarks.suggestions.work import Work
from lrrt_stage import Guard, LRCurve, LRRange
from pipeline.training.refinement import PeakSampler, best_range, median_pruner, peak_range

__all__ = ["SEARCHES", "Search", "refined", "searched"]

PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "median": median_pruner,
    "Hyperband": lambda epochs: optuna.pruners.HyperbandPruner(),
    "successive halving": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(),
}
"""Name -> function of the epochs of a trial. The first is that of ``refine``."""


@dataclass(frozen=True)
class Search:
    """Short trainings from the same weights; the guard ends those that are being ruined."""

    trials: int
    share: float
    """Epochs of a trial as a share of those of the training; at least one."""
    pruner: str

    def __str__(self) -> str:
        length = "1" if self.share == 1 else f"1/{round(1 / self.share)}"
        return f"{self.trials} trials of {length}, {self.pruner}"


SEARCHES = [Search(*each) for each in product((4, 8), (1 / 8, 1 / 4, 1.0), PRUNERS)]


@dataclass(frozen=True)
class Found:
    """The training that a search ends in: its losses, and the steps of everything."""

    lr: float
    loss: float
    kept_loss: float
    steps: int


def refined(
    work: Work,
    problems: Problems,
    measured: Mapping[Key, LRCurve],
    ranges: pd.DataFrame,
    searches: Sequence[Search],
) -> pd.DataFrame:
    """Return the guarded training at the best peak of each search over ``lr_min`` to ``lr``."""
    made = ranges[ranges["lr"].notna()]
    calls = []
    for row in made.itertuples():
        lr_range = LRRange(float(row.lr_min), float(row.lr))
        curve = measured[row.problem, row.seed]
        calls.append((problems[row.problem], row.seed, curve, lr_range, tuple(searches)))
    found = [each for several in work.run(searched, calls, "searches") for each in several]
    table = made[["problem", "seed"]].merge(
        pd.DataFrame({"rule": [*map(str, searches)]}), how="cross"
    )
    steps = [total_steps(problems[name], problems[name].epochs) for name in table["problem"]]
    return table.assign(
        lr=[each.lr for each in found],
        loss=[each.loss for each in found],
        kept_loss=[each.kept_loss for each in found],
        trainings=[each.steps / whole for each, whole in zip(found, steps, strict=True)],
    )


def searched(
    problem: Problem, seed: int, curve: LRCurve, lr_range: LRRange, searches: Iterable[Search]
) -> list[Found]:
    """Search the peak by the validation loss of the trials, and train at it, for each search.

    The peaks are proposed as ``refine`` does; the pruner is that of the search.

    Where trials are as long as the training, the best one is the training.
    """
    # The first peaks of all searches are the same.
    train = cache(partial(recorded, problem, seed))
    return [_search(problem, curve, lr_range, search, train) for search in searches]


def _search(
    problem: Problem,
    curve: LRCurve,
    lr_range: LRRange,
    search: Search,
    train: Callable[[LRRange, int], Recorded],
) -> Found:
    epochs = max(1, round(search.share * problem.epochs))
    steps = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal steps
        peak = trial.suggest_float("peak_lr", lr_range.min, lr_range.max, log=True)
        attempt = next(iter(Guard(curve, peak_range(peak, lr_range), 1)))
        record = train(attempt.range, epochs)
        seen = watched(attempt, record, problem, epochs)
        per_epoch = total_steps(problem, epochs) // epochs
        for epoch in range(1, epochs + 1):
            if epoch * per_epoch > seen or (attempt.is_lost and epoch * per_epoch >= seen):
                break
            trial.report(float(record.val[epoch - 1]), epoch)
            if epoch < epochs and trial.should_prune():
                steps += epoch * per_epoch
                raise optuna.TrialPruned
        steps += seen
        return float("inf") if attempt.is_lost else record.final_loss

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Hyperband chooses the bracket of a trial by the name, which is random if none is given.
        study = optuna.create_study(
            study_name="search",
            pruner=PRUNERS[search.pruner](epochs),
            sampler=PeakSampler(lr_range, seed=0),
        )
        study.optimize(objective, n_trials=search.trials)
    best = best_range(study, lr_range)
    if epochs == problem.epochs and best is not None:
        record = train(best, epochs)
        return Found(best.max, record.final_loss, record.lowest_loss, steps)
    for attempt in Guard(curve, best or lr_range, ATTEMPTS):
        record = train(attempt.range, problem.epochs)
        steps += watched(attempt, record, problem, problem.epochs)
        if attempt.number == ATTEMPTS and attempt.is_lost:
            return Found(attempt.range.max, float("inf"), float("inf"), steps)
    return Found(attempt.range.max, record.final_loss, record.lowest_loss, steps)
