"""Training inside a range of learning rates."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrrt_stage import LRRange, TrainingStep, deterministic, seeded
from lrrt_stage.measure.step import BatchStream
from lrrt_stage.settings import Options, setting
from lrrt_stage.state.weights import State
from pipeline.task.prepared import PreparedTask
from pipeline.training.schedules import SCHEDULES, build_schedule

__all__ = ["Epoch", "TrainOptions", "Training", "train"]


@dataclass(frozen=True)
class TrainOptions(Options):
    """How long and by which schedule."""

    epochs: int = setting(20, "Passes over the training data.", minimum=1)
    schedule: str = setting("one-cycle", "How the learning rate moves.", choices=SCHEDULES)


@dataclass(frozen=True)
class Epoch:
    """Validation after an epoch; ``iteration`` is the number of steps taken by then."""

    iteration: int
    val_loss: float
    val_accuracy: float


@dataclass
class Training:
    """What a training has come to: a value per step, a value per epoch, and the model."""

    model: nn.Module
    total_steps: int
    lr: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite; training ends there."""
        losses = [*self.train_loss, *(epoch.val_loss for epoch in self.epochs)]
        return not all(map(isfinite, losses))

    @property
    def val_loss(self) -> float:
        """Validation loss after the last epoch; infinite if training diverged."""
        return float("inf") if self.diverged or not self.epochs else self.epochs[-1].val_loss


def train(
    prepared: PreparedTask,
    state: State,
    lr_range: LRRange,
    options: TrainOptions,
    *,
    on_epoch: Callable[[Training], None] | None = None,
    checkpoint: Path | None = None,
) -> Training:
    """Train the prepared's task from the weights ``state``.

    The first step is the range test's first step but for its learning rate, so the first loss is
    the same bit for bit on the same device.

    Parameters
    ----------
    prepared, state
        The task, and where it starts.
    lr_range, options
        What the schedule goes through, which schedule, and how many epochs.
    on_epoch
        Called after every epoch; what it raises ends the training.
    checkpoint
        A file that is written after every epoch. If it is there, training goes on from it, to
        the same result as without the interruption.

    Raises
    ------
    LRRTError
        If an example of a split that is not in memory cannot be used. All of the validation split
        is read before the first epoch, the training split as the epoch goes.
    """
    start = prepared.start(state)
    model, optimizer, batches = start.model, start.optimizer, start.batches
    steps_per_epoch = max(len(batches) // prepared.task.accumulate, 1)
    training = Training(model, options.epochs * steps_per_epoch)
    schedule = build_schedule(options.schedule, optimizer, lr_range, training.total_steps)
    # Once for a prepared: a fraction of an epoch, against an epoch of training that would be lost.
    prepared.val_batches.check()
    take_step = TrainingStep(model, optimizer, start.batch_loss, prepared.task, prepared.device)
    with seeded(prepared.task.data_seed), deterministic(), warnings.catch_warnings():
        # torch warns when a schedule counts a step that the optimizer did not take: fp16 leaves
        # out steps that overflow, and a resumed schedule counts up to where it was.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        if checkpoint is not None and checkpoint.exists():
            _resume(torch.load(checkpoint, weights_only=True), training, start, take_step)
            rates = [group["lr"] for group in optimizer.param_groups]
            for _ in training.lr:
                schedule.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        while len(training.epochs) < options.epochs and not training.diverged:
            stream = BatchStream(batches)
            model.train()
            losses: list[Tensor] = []
            for _ in range(steps_per_epoch):
                training.lr.append(max(group["lr"] for group in optimizer.param_groups))
                losses.append(take_step(stream))
                schedule.step()
            training.train_loss += torch.stack(losses).tolist()
            training.epochs.append(Epoch(len(training.train_loss), *prepared.evaluate(model)))
            if checkpoint is not None:
                _write(checkpoint, training, start, take_step)
            if on_epoch is not None:
                on_epoch(training)
    return training


def _write(path: Path, training: Training, start: Any, take_step: TrainingStep) -> None:
    content = {
        "lr": training.lr,
        "train_loss": training.train_loss,
        "epochs": [(e.iteration, e.val_loss, e.val_accuracy) for e in training.epochs],
        "model": start.model.state_dict(),
        "optimizer": start.optimizer.state_dict(),
        "scaler": take_step.scaler.state_dict(),
        "batches": start.batches.generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": _listed(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
    }
    # Whole or not at all, even if the process ends here.
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def _listed(numpy_state: Any) -> tuple[Any, ...]:
    return tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in numpy_state)


def _resume(
    content: dict[str, Any], training: Training, start: Any, take_step: TrainingStep
) -> None:
    training.lr, training.train_loss = content["lr"], content["train_loss"]
    training.epochs = [Epoch(*values) for values in content["epochs"]]
    start.model.load_state_dict(content["model"])
    start.optimizer.load_state_dict(content["optimizer"])
    take_step.scaler.load_state_dict(content["scaler"])
    start.batches.generator.set_state(content["batches"])
    torch.set_rng_state(content["torch"])
    if content["cuda"]:
        torch.cuda.set_rng_state_all(content["cuda"])
    np.random.set_state(content["numpy"])  # noqa: NPY002
    random.setstate(content["python"])
