"""What is computed for a problem and a seed: its initial loss, a training, a range test."""

from __future__ import annotations

from math import inf, isfinite

import torch

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

__all__ = ["final_loss", "initial_loss", "lr_curve"]

CHECK_EVERY = 10
"""Iterations between two looks for a loss that is not finite."""


def initial_loss(problem: Problem, seed: int) -> float:
    """Return the validation loss of the initial weights."""
    return problem.evaluate(problem.start(seed)[0])


def final_loss(problem: Problem, seed: int, lr_range: LRRange, epochs: int) -> float:
    """Return the validation loss after one cycle over the range; infinite if it is not finite."""
    model, optimizer, batches = problem.start(seed)
    steps = len(batches) * epochs
    schedule = build_schedule("one-cycle", optimizer, lr_range, steps)
    step = TrainingStep(
        model,
        optimizer,
        batch_loss_of(model, problem.loss_fn),
        StepOptions(),
        torch.device("cpu"),
    )
    with seeded(seed), deterministic():
        model.train()
        stream = endless(batches)
        for i in range(steps):
            loss = step(stream)
            schedule.step()
            if i % CHECK_EVERY == 0 and not isfinite(loss.item()):
                return inf
    final = problem.evaluate(model)
    return final if isfinite(final) else inf


def lr_curve(problem: Problem, seed: int, lr_start: float = 1e-7, iterations: int = 100) -> LRCurve:
    """Return the curve of a range test up to the default ``lr_end``, with a probe."""
    model, optimizer, batches = problem.start(seed)
    with seeded(seed):
        return range_test(
            model,
            optimizer,
            problem.loss_fn,
            batches,
            probe=problem.probe(),
            lr_start=lr_start,
            iterations=iterations,
        )
