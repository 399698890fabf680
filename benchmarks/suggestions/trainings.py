"""What is computed for a problem and a seed: its initial loss, a training, a range test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from benchmarks.suggestions.problems import Problem
from lrrt_stage import (
    LRCurve,
    LRRange,
    StepOptions,
    TrainingStep,
    deterministic,
    range_test,
    seeded,
)
from lrrt_stage.measure.step import batch_loss_of, endless
from pipeline.training.schedules import build_schedule

__all__ = ["Recorded", "initial_loss", "lr_curve", "recorded", "recorded_without_lr"]


def initial_loss(problem: Problem, seed: int) -> float:
    """Return the validation loss of the initial weights."""
    return problem.evaluate(problem.start(seed)[0])


@dataclass(frozen=True, eq=False)
class Recorded:
    """The losses of a training. It ends early where a loss is not finite."""

    train: np.ndarray
    """Of every step before it is taken, ``[steps]``."""
    val: np.ndarray
    """Over the validation split after every epoch, ``[epochs]``."""

    @property
    def final_loss(self) -> float:
        """Validation loss after the last epoch; infinite if a loss was not finite."""
        return float(self.val[-1]) if np.isfinite([*self.train, *self.val]).all() else inf

    @property
    def lowest_loss(self) -> float:
        """Lowest validation loss of all epochs; infinite if none was finite."""
        return min(filter(isfinite, self.val.tolist()), default=inf)


def recorded(problem: Problem, seed: int, lr_range: LRRange, epochs: int) -> Recorded:
    """Train by one cycle over the range, and return the losses."""
    model, optimizer, batches = problem.start(seed)
    steps = len(batches) * epochs
    schedule = build_schedule("one-cycle", optimizer, lr_range, steps)
    return _recorded(problem, seed, epochs, model, optimizer, batches, schedule.step)


def recorded_without_lr(problem: Problem, seed: int, name: str, epochs: int) -> Recorded:
    """Train with an optimizer that is made to need no learning rate, at its defaults."""
    from prodigyopt import Prodigy
    from schedulefree import AdamWScheduleFree

    model, _, batches = problem.start(seed)
    kinds = {"Prodigy": Prodigy, "schedule-free AdamW": AdamWScheduleFree}
    optimizer = kinds[name](model.parameters())
    return _recorded(problem, seed, epochs, model, optimizer, batches, lambda: None)


def _recorded(
    problem: Problem,
    seed: int,
    epochs: int,
    model: nn.Module,
    optimizer: Optimizer,
    batches: DataLoader,
    next_lr: Callable[[], None],
) -> Recorded:
    # Schedule-free optimizers have other weights for evaluations.
    set_mode = {mode: getattr(optimizer, mode, lambda: None) for mode in ("train", "eval")}
    step = TrainingStep(
        model,
        optimizer,
        batch_loss_of(model, problem.loss_fn),
        StepOptions(),
        torch.device("cpu"),
    )
    train: list[float] = []
    val: list[float] = []
    with seeded(seed), deterministic():
        stream = endless(batches)
        while len(val) < epochs and all(map(isfinite, train[-len(batches) :] + val[-1:])):
            model.train()
            set_mode["train"]()
            losses = []
            for _ in range(len(batches)):
                losses.append(step(stream))
                next_lr()
            train += torch.stack(losses).tolist()
            set_mode["eval"]()
            val.append(problem.evaluate(model))
    return Recorded(np.array(train, np.float32), np.array(val))


def lr_curve(problem: Problem, seed: int, lr_start: float = 1e-7, iterations: int = 100) -> LRCurve:
    """Return the curve of a range test up to the default ``lr_end``.

    The probe is evaluated at every iteration, as when the tables were made.
    """
    model, optimizer, batches = problem.start(seed)
    with seeded(seed):
        return range_test(
            model,
            optimizer,
            problem.loss_fn,
            batches,
            probe=problem.probe(),
            probe_every=1,
            lr_start=lr_start,
            iterations=iterations,
        )
