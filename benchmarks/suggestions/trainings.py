"""A one-cycle training of a problem at a peak learning rate."""
from __future__ import annotations

from math import isfinite

import torch

from benchmarks.suggestions.problems import PROBLEMS
from lrrt_stage import LRRange, StepOptions, TrainingStep, deterministic, seeded
from lrrt_stage.step import BatchStream, batch_loss_of
from pipeline.schedules import build_schedule


def initial_loss(name: str, seed: int) -> float:
    problem = PROBLEMS[name]
    return problem.evaluate(problem.start(seed)[0])


def final_loss(name: str, seed: int, lr_range: LRRange, epochs: int | None = None, schedule: str = "one-cycle") -> float:
    """Return the validation loss after training; infinite if it diverged."""
    problem = PROBLEMS[name]
    model, optimizer, batches = problem.start(seed)
    steps = len(batches) * (epochs or problem.epochs)
    plan = build_schedule(schedule, optimizer, lr_range, steps)
    step = TrainingStep(model, optimizer, batch_loss_of(model, problem.loss_fn), StepOptions(), torch.device("cpu"))
    with seeded(seed), deterministic():
        model.train()
        stream = BatchStream(batches)
        for i in range(steps):
            loss = step(stream)
            plan.step()
            if i % 10 == 0 and not isfinite(loss.item()):
                return float("inf")
    final = problem.evaluate(model)
    return final if isfinite(final) else float("inf")
