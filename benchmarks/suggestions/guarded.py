"""The chain: one range test, the narrowed range, and a training that starts again if it is lost.

The guard reads the losses of trainings that were recorded to their end, as it would while they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import torch

from benchmarks.suggestions.problems import Problem
from benchmarks.suggestions.regrets import Key, Problems, recorded_at
from benchmarks.suggestions.trainings import Recorded
from benchmarks.suggestions.work import Work
from lrrt_stage import Attempt, Guard, LRCurve, LRRange
from pipeline.training.schedules import build_schedule

__all__ = ["alarms", "guarded", "total_steps", "watched"]

ATTEMPTS = 3


def guarded(
    work: Work,
    problems: Problems,
    measured: Mapping[Key, LRCurve],
    ranges: pd.DataFrame,
    attempts: int = ATTEMPTS,
    long: bool = False,
) -> pd.DataFrame:
    """Return the losses of guarded trainings over ``ranges``: ``lr_min`` and ``lr``.

    The columns of :func:`~benchmarks.suggestions.regrets.trained`, ``lr`` of the attempt that
    counts, ``trainings``, ``attempts``, and ``reasons`` of those that were lost.
    """
    runs = ranges.assign(loss=np.nan, kept_loss=np.nan, trainings=np.nan, attempts=0, reasons="")
    made = runs[runs["lr"].notna()]
    guards = {}
    for row in made.itertuples():
        curve = measured[row.problem, row.seed]
        guards[row.Index] = Guard(curve, LRRange(row.lr_min, row.lr), attempts)
    pending = {index: iter(guard) for index, guard in guards.items()}
    steps = dict.fromkeys(pending, 0)
    records: dict[int, Recorded] = {}
    for number in range(attempts):
        begun = {index: next(attempts_of) for index, attempts_of in pending.items()}
        rows = made.loc[[*begun]]
        of_attempt = {index: attempt.range for index, attempt in begun.items()}
        records |= recorded_at(work, problems, rows, of_attempt, long, f"attempt {number + 1}")
        for index, attempt in begun.items():
            problem = problems[made.at[index, "problem"]]
            steps[index] += watched(attempt, records[index], problem, long)
            if not attempt.is_lost:
                del pending[index]
    for index, guard in guards.items():
        problem, last = problems[made.at[index, "problem"]], guard.attempts[-1]
        lost = [attempt.reason for attempt in guard.attempts if attempt.is_lost]
        found = (np.inf, np.inf) if last.is_lost else _losses(records[index])
        runs.loc[index, ["loss", "kept_loss"]] = found
        runs.loc[index, "lr"] = last.range.max
        runs.loc[index, "trainings"] = steps[index] / total_steps(problem, long)
        runs.loc[index, "attempts"] = len(guard.attempts)
        runs.loc[index, "reasons"] = "; ".join(lost)
    return runs


def alarms(
    work: Work, problems: Problems, measured: Mapping[Key, LRCurve], reference: pd.DataFrame
) -> pd.DataFrame:
    """Return whether a training at the best peak of the grid is called lost, and at which step."""
    ranges = {row.Index: LRRange(row.best_lr / 10, row.best_lr) for row in reference.itertuples()}
    records = recorded_at(work, problems, reference, ranges, False, "grid")
    rows = []
    for row in reference.itertuples():
        guard = Guard(measured[row.problem, row.seed], ranges[row.Index])
        attempt = next(iter(guard))
        step = watched(attempt, records[row.Index], problems[row.problem], False)
        rows.append((row.problem, row.seed, row.best_lr, step if attempt.is_lost else 0))
    return pd.DataFrame(rows, columns=["problem", "seed", "best_lr", "lost at step"])


def watched(attempt: Attempt, record: Recorded, problem: Problem, long: bool) -> int:
    """Show the losses of a training to an attempt; return the steps until it was lost, or all."""
    lr_range, losses = attempt.range, record.train.tolist()
    shape = one_cycle(total_steps(problem, long), lr_range.max / lr_range.min)
    for step, loss in enumerate(losses):
        if attempt.watch(loss, shape[step] * lr_range.max):
            return step + 1
    if not attempt.read() and not np.isfinite(record.final_loss):
        attempt.lose("the validation loss was not finite")
    return len(losses)


def total_steps(problem: Problem, long: bool) -> int:
    """Return the number of steps of a training."""
    epochs = problem.long_epochs if long else problem.epochs
    return epochs * (len(problem.data().train[0]) // problem.batch_size)


@cache
def one_cycle(steps: int, width: float) -> list[float]:
    """Return the learning rates of a cycle from 1 / ``width`` up to 1, one for each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    schedule = build_schedule("one-cycle", optimizer, LRRange(1 / width, 1.0), steps)
    rates: list[float] = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def _losses(record: Recorded) -> tuple[float, float]:
    return record.final_loss, record.lowest_loss
