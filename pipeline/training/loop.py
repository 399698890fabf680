"""Training inside a range of learning rates."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lrrt_stage import LRRange, TrainingStep, deterministic, seeded
from lrrt_stage.errors import first_line
from lrrt_stage.measure.ramps import epoch_length
from lrrt_stage.measure.step import endless
from lrrt_stage.settings import Options, setting
from lrrt_stage.state.preserve import generators, set_training
from lrrt_stage.state.weights import State
from pipeline.task.prepared import PreparedTask, errors_of
from pipeline.task.setup import Setup
from pipeline.training.checkpoint import read_checkpoint, write_checkpoint
from pipeline.training.schedules import build_schedule, find_schedule

__all__ = ["Epoch", "ScheduleOptions", "TrainOptions", "Training", "TrainingHistory", "train"]


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """How the learning rate moves inside its range."""

    schedule: str = setting(
        "one-cycle",
        "How the learning rate moves: one-cycle, triangular, warm-restarts, constant, or a class "
        "of torch.optim.lr_scheduler.",
    )
    schedule_args: dict[str, Any] = setting({}, "Keyword arguments of the schedule, as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        find_schedule(self.schedule)


@dataclass(frozen=True)
class TrainOptions(ScheduleOptions):
    """The length of a training, and its schedule."""

    epochs: int = setting(20, "Passes over the training data.", minimum=1)


@dataclass(frozen=True)
class Epoch:
    """Validation after an epoch; ``iteration`` is the number of steps taken by then."""

    iteration: int
    val_loss: float | None
    """None without validation batches."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Name without ``val_`` -> value."""

    def values(self) -> dict[str, float]:
        """Return loss and metrics by the names that they are logged by."""
        loss = {} if self.val_loss is None else {"val_loss": self.val_loss}
        return loss | {f"val_{name}": value for name, value in self.metrics.items()}


@dataclass
class TrainingHistory:
    """Learning rate and training loss of every step, and the validation of every epoch."""

    lr: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite, which ends the training."""
        validated = [epoch.val_loss for epoch in self.epochs if epoch.val_loss is not None]
        return not all(map(isfinite, [*self.train_loss, *validated]))

    @property
    def val_loss(self) -> float:
        """Validation loss after the last epoch; infinite if training diverged, NaN without one."""
        if self.diverged or not self.epochs:
            return inf
        last = self.epochs[-1].val_loss
        return nan if last is None else last


@dataclass(repr=False, kw_only=True)
class Training(TrainingHistory):
    """The progress of a training: its history so far, and the setup with the model."""

    setup: Setup
    total_steps: int

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.setup.model

    def __repr__(self) -> str:
        steps = f"{len(self.lr)} of {self.total_steps} steps"
        return f"Training({steps}, {len(self.epochs)} epochs, val_loss {self.val_loss:.4g})"


def train(
    prepared: PreparedTask,
    state: State,
    lr_range: LRRange,
    options: TrainOptions,
    *,
    on_epoch: Callable[[Training], None] | None = None,
    checkpoint: Path | None = None,
) -> Training:
    """Train the model of a task from the weights ``state``.

    The first step differs from that of the range test in its learning rate only, so that the first
    loss is bit-equal on the same device.

    Parameters
    ----------
    prepared, state
        The task, and its initial weights.
    lr_range, options
        The range of the schedule, the schedule, and the number of epochs.
    on_epoch
        Called after every epoch. An exception from it ends the training.
    checkpoint
        File that is written after every epoch. If it exists, training resumes from it, with the
        same result as without the interruption; attributes of a model or of a sampler that are
        neither buffers nor generators of torch begin anew.

    Raises
    ------
    LRRTError
        If a batch, the loss, or a metric cannot be used. The validation batches are read completely
        before the first epoch, the training batches during the epochs.
    """
    start = prepared.start(state)
    prepared.check_validation(start)
    model, optimizer, batches = start.model, start.optimizer, start.train_batches
    steps_per_epoch = max(epoch_length(batches) // prepared.task.accumulate, 1)
    training = Training(setup=start, total_steps=options.epochs * steps_per_epoch)
    schedule = build_schedule(
        options.schedule, optimizer, lr_range, training.total_steps, **options.schedule_args
    )
    take_step = TrainingStep(model, optimizer, start.training_loss, prepared.task, prepared.device)
    set_training(model)
    with deterministic(), seeded(prepared.task.data_seed), warnings.catch_warnings():
        # torch warns when a schedule counts a step that the optimizer did not take: fp16 skips
        # steps that overflow, and a resumed schedule counts up to where it was.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        if checkpoint is not None and checkpoint.exists():
            _load_checkpoint(checkpoint, training, take_step, schedule)
        while len(training.epochs) < options.epochs and not training.diverged:
            stream = endless(batches)
            losses: list[Tensor] = []
            with errors_of(prepared.task):
                for _ in range(steps_per_epoch):
                    training.lr.append(max(group["lr"] for group in optimizer.param_groups))
                    losses.append(take_step(stream))
                    schedule.step()
            training.train_loss += torch.stack(losses).tolist()
            validated = prepared.evaluate(start) if start.val_batches is not None else (None, {})
            training.epochs.append(Epoch(len(training.train_loss), *validated))
            if checkpoint is not None:
                _save_checkpoint(checkpoint, training, take_step)
            if on_epoch is not None:
                on_epoch(training)
    return training


def _save_checkpoint(path: Path, training: Training, take_step: TrainingStep) -> None:
    setup = training.setup
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    model = setup.model.state_dict()
    content = {
        "lr": torch.tensor(training.lr, dtype=torch.float64),
        "train_loss": torch.tensor(training.train_loss, dtype=torch.float64),
        "epochs": [astuple(epoch) for epoch in training.epochs],
        "model": (model, getattr(model, "_metadata", {})),
        "losses": [loss.state_dict() for loss in setup.loss_modules],
        "optimizer": setup.optimizer.state_dict(),
        "scaler": take_step.scaler.state_dict(),
        "batches": [generator.get_state() for generator in generators(setup.train_batches)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
    }
    try:
        write_checkpoint(path, content)
    except (OSError, SafetensorError) as error:  # the disk is full: the training is worth more
        warnings.warn(f"no checkpoint is kept: {first_line(error)}", stacklevel=2)


def _load_checkpoint(
    path: Path, training: Training, take_step: TrainingStep, schedule: LRScheduler
) -> None:
    setup, content = training.setup, read_checkpoint(path)
    training.lr, training.train_loss = content["lr"].tolist(), content["train_loss"].tolist()
    training.epochs = [Epoch(*values) for values in content["epochs"]]
    for _ in training.lr:
        schedule.step()
    state, versions = content["model"]
    model = OrderedDict(state)
    model._metadata = versions  # type: ignore[attr-defined]
    setup.model.load_state_dict(model)
    for loss, state in zip(setup.loss_modules, content["losses"], strict=True):
        loss.load_state_dict(state)
    # After the schedule, so that the learning rates are bit-equal.
    setup.optimizer.load_state_dict(content["optimizer"])
    take_step.scaler.load_state_dict(content["scaler"])
    sources = generators(setup.train_batches)
    for generator, generated in zip(sources, content["batches"], strict=True):
        generator.set_state(generated)
    torch.set_rng_state(content["torch"])
    if content["cuda"]:
        torch.cuda.set_rng_state_all(content["cuda"])
    np.random.set_state(content["numpy"])  # noqa: NPY002
    random.setstate(content["python"])
