"""The chain: one range test, and a training in its range that starts again if it is lost.

The guard reads the losses of trainings that were recorded to their end, as it would while they run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import pandas as pd
import torch

from benchmarks.suggestions.problems import Problem
from benchmarks.suggestions.regrets import Key, Problems, recorded_at
from benchmarks.suggestions.trainings import Recorded
from benchmarks.suggestions.work import Work
from lrrt_stage import Attempt, Guard, LRCurve, LRRange, shows_gain
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
    pending: dict[int, Iterator[Attempt]] = {}
    for row in made.itertuples():
        curve, lr_range = measured[row.problem, row.seed], LRRange(row.lr_min, row.lr)
        watched_by = (
            Guard(curve, lr_range, attempts) if shows_gain(curve) else [Attempt(1, lr_range)]
        )
        pending[row.Index] = iter(watched_by)
    steps = dict.fromkeys(pending, 0)
    records: dict[int, Recorded] = {}
    tried: dict[int, list[Attempt]] = {index: [] for index in pending}
    for number in range(attempts):
        begun = {index: next(of_run) for index, of_run in pending.items()}
        of_attempt = {index: attempt.range for index, attempt in begun.items()}
        rows, title = made.loc[[*begun]], f"attempt {number + 1}"
        records |= recorded_at(work, problems, rows, of_attempt, long, title)
        for index, attempt in begun.items():
            tried[index].append(attempt)
            problem = problems[made.at[index, "problem"]]
            steps[index] += watched(attempt, records[index], problem, _epochs(problem, long))
            if not attempt.is_lost or attempt.gain is None:
                del pending[index]
    for index, each in tried.items():
        problem, last = problems[made.at[index, "problem"]], each[-1]
        lost = [attempt.reason for attempt in each if attempt.is_lost]
        record = records[index]
        losses = (np.inf, np.inf) if last.is_lost else (record.final_loss, record.lowest_loss)
        runs.loc[index, ["loss", "kept_loss"]] = losses
        runs.loc[index, "lr"] = last.range.max
        runs.loc[index, "trainings"] = steps[index] / total_steps(problem, _epochs(problem, long))
        runs.loc[index, "attempts"] = len(each)
        runs.loc[index, "reasons"] = "; ".join(lost)
    return runs


def alarms(
    work: Work, problems: Problems, measured: Mapping[Key, LRCurve], reference: pd.DataFrame
) -> pd.DataFrame:
    """Return whether a training at the best peak of the grid is ``lost``, ``after`` which share."""
    reference = reference.assign(lr=reference["best_lr"], lr_min=reference["best_lr"] / 10)
    runs = guarded(work, problems, measured, reference, attempts=1)
    lost = runs["reasons"] != ""
    share = runs["trainings"].where(lost)
    return runs[["problem", "seed", "best_lr", "reasons"]].assign(lost=lost, after=share)


def watched(attempt: Attempt, record: Recorded, problem: Problem, epochs: int) -> int:
    """Show the losses of a training to an attempt; return the steps until it was lost, or all."""
    lr_range, losses = attempt.range, record.train.tolist()
    shape = one_cycle(total_steps(problem, epochs), lr_range.max / lr_range.min)
    for step, loss in enumerate(losses):
        if attempt.watch(loss, shape[step] * lr_range.max):
            return step + 1
    if not attempt.read() and not np.isfinite(record.final_loss):
        attempt.lose("the validation loss was not finite")
    return len(losses)


def _epochs(problem: Problem, long: bool) -> int:
    return problem.long_epochs if long else problem.epochs


def total_steps(problem: Problem, epochs: int | None = None) -> int:
    """Return the number of steps of a training, by default of a short one."""
    return (epochs or problem.epochs) * (len(problem.data().train[0]) // problem.batch_size)


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
