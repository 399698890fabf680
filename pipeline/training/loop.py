"""Training inside a range of learning rates."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map_only

from lrrt_stage import (
    Attempt,
    AttemptsSpent,
    Guard,
    LRCurve,
    LRRange,
    LRRTError,
    TrainingStep,
    deterministic,
    seeded,
)
from lrrt_stage.errors import first_line
from lrrt_stage.measure.loss_recorder import read_losses
from lrrt_stage.measure.ramps import epoch_length
from lrrt_stage.measure.step import endless
from lrrt_stage.state import weights
from lrrt_stage.state.preserve import generators, set_training
from lrrt_stage.state.tensors import is_sharded, shard_like, whole
from lrrt_stage.state.weights import State
from pipeline.ranks.group import Ranks, following, on_all_ranks
from pipeline.ranks.share import SharedBatches
from pipeline.task.prepared import PreparedTask, errors_of
from pipeline.task.setup import Setup
from pipeline.training.checkpoint import read_checkpoint, write_checkpoint
from pipeline.training.options import TrainOptions
from pipeline.training.schedules import build_schedule

__all__ = [
    "Epoch",
    "LostAttempt",
    "Training",
    "TrainingHistory",
    "train",
]


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
    starts: list[int] = field(default_factory=lambda: [0])
    """The iterations with which attempts begin."""

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

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch with the lowest validation loss, the first of several; None without one."""
        validated = [e for e in self.epochs if e.val_loss is not None and isfinite(e.val_loss)]
        return min(validated, key=lambda epoch: epoch.val_loss or 0.0, default=None)


@dataclass(kw_only=True)
class LostAttempt(TrainingHistory):
    """An attempt at a training that was given up."""

    range: LRRange
    reason: str
    """Why, as a clause."""


@dataclass(repr=False, kw_only=True)
class Training(TrainingHistory):
    """The progress of a training: the history of this attempt so far, and the setup with the model.

    Iterations are counted from the beginning of the attempt.
    """

    setup: Setup
    total_steps: int
    range: LRRange
    """The learning rates of this attempt."""
    lost: list[LostAttempt] = field(default_factory=list)
    """The attempts before this one."""
    reason: str = ""
    """Why this attempt is lost; empty while it is not."""
    best_weights: State | None = None
    """Weights after :attr:`best_epoch`, on the CPU; None without validation."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.setup.model

    def joined(self) -> TrainingHistory:
        """Return all attempts one after the other, with iterations counted over all of them."""
        history = TrainingHistory(starts=[])
        for attempt in (*self.lost, self):
            first = len(history.train_loss)
            history.starts.append(first)
            history.lr += attempt.lr
            history.train_loss += attempt.train_loss
            history.epochs += [
                replace(epoch, iteration=first + epoch.iteration) for epoch in attempt.epochs
            ]
        return history

    def __repr__(self) -> str:
        steps = f"{len(self.lr)} of {self.total_steps} steps"
        number = f"attempt {len(self.lost) + 1}, " if self.lost else ""
        return f"Training({number}{steps}, {len(self.epochs)} epochs, val_loss {self.val_loss:.4g})"


@on_all_ranks
def train(
    prepared: PreparedTask,
    state: State,
    lr_range: LRRange,
    options: TrainOptions,
    *,
    curve: LRCurve | None = None,
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
        The range of the schedule, the schedule, the number of epochs, and that of attempts.
    curve
        The range test of these weights, by which a training that is being ruined is noticed
        (:class:`lrrt_stage.Guard`): it starts again from the same weights with lower learning
        rates. None: there is one attempt, which ends at a loss that is not finite.
    on_epoch
        Called after every epoch, and where an attempt is lost. An exception from it ends the
        training.
    checkpoint
        File that is written after every epoch. If it exists, training resumes from it, with the
        same result as without the interruption; attributes of a model or of a sampler that are
        neither buffers nor generators of torch begin anew.

    Returns
    -------
    Training
        The attempt that counts: the first one that was not lost, or the last one. Its ``reason``
        says whether it is lost as well.

    Raises
    ------
    LRRTError
        If a batch, the loss, or a metric cannot be used. The validation batches are read completely
        before the first epoch, the training batches during the epochs. If the ``curve`` shows no
        fall of the loss.
    """
    guard: Iterable[Attempt] = [Attempt(1, lr_range)]
    if curve is not None:
        guard = Guard(curve, lr_range, options.attempts)
    start: Setup | None = prepared.start(state)
    prepared.check_validation(start)
    kept = _kept(prepared, checkpoint)
    lost = [] if kept is None else _lost_attempts(kept)
    training: Training | None = None
    with suppress(AttemptsSpent):
        for attempt in guard:
            if attempt.number <= len(lost):  # before the interruption
                attempt.lose(lost[attempt.number - 1].reason)
                continue
            if training is not None:
                last = (training.lr, training.train_loss, training.epochs)
                lost.append(LostAttempt(*last, range=training.range, reason=training.reason))
            training = None  # so that the device holds one model at a time
            training = Training(
                setup=start or prepared.start(state), total_steps=0, range=attempt.range, lost=lost
            )
            start = None
            _run_attempt(training, attempt, prepared, options, kept, on_epoch, checkpoint)
            kept = None
    if training is None:
        raise LRRTError(
            f"the checkpoint has {len(lost)} attempts that were lost, and attempts="
            f"{options.attempts} allows no other: raise it"
        )
    training.setup = prepared.whole(training.setup)
    return training


def _kept(prepared: PreparedTask, checkpoint: Path | None) -> dict[str, Any] | None:
    """Return the content of a checkpoint, which rank 0 has, if it is there."""
    ranks, kept = prepared.ranks, None
    if checkpoint is not None and checkpoint.exists() and (ranks is None or ranks.is_first):
        kept = read_checkpoint(checkpoint)
    return kept if ranks is None else ranks.broadcast(kept)


def _run_attempt(
    training: Training,
    attempt: Attempt,
    prepared: PreparedTask,
    options: TrainOptions,
    kept: dict[str, Any] | None,
    on_epoch: Callable[[Training], None] | None,
    checkpoint: Path | None,
) -> None:
    setup, task = training.setup, prepared.task
    optimizer, batches = setup.optimizer, setup.train_batches
    steps_per_epoch = max(epoch_length(batches) // task.accumulate, 1)
    training.total_steps = options.epochs * steps_per_epoch
    schedule = build_schedule(
        options.schedule, optimizer, attempt.range, training.total_steps, **options.schedule_args
    )
    take_step = TrainingStep(setup.model, optimizer, setup.training_loss, task, prepared.device)
    is_watched = attempt.gain is not None
    set_training(setup.model)
    with deterministic(), seeded(prepared.seed_of_steps), warnings.catch_warnings():
        # torch warns when a schedule counts a step that the optimizer did not take: fp16 skips
        # steps that overflow, and a resumed schedule counts up to where it was.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        if kept is not None:
            _load_checkpoint(kept, training, take_step, schedule, prepared.ranks)
            for loss, lr in zip(training.train_loss, training.lr, strict=True):
                attempt.watch(loss, lr)
        while len(training.epochs) < options.epochs and not attempt.is_lost:
            stream = endless(batches)
            losses: list[Tensor] = []
            with errors_of(task):
                for _ in range(steps_per_epoch):
                    training.lr.append(max(group["lr"] for group in optimizer.param_groups))
                    losses.append(take_step(stream))
                    schedule.step()
                    if is_watched and attempt.watch(losses[-1], training.lr[-1]):
                        break
            training.train_loss += read_losses(losses)
            if not attempt.is_lost:
                _end_epoch(training, attempt, prepared)
                if len(training.epochs) == options.epochs:
                    attempt.read()
            training.reason = attempt.reason
            if checkpoint is not None and not attempt.is_lost:
                _save_checkpoint(checkpoint, training, take_step, prepared.ranks)
            with following():
                if on_epoch is not None:
                    on_epoch(training)


def _end_epoch(training: Training, attempt: Attempt, prepared: PreparedTask) -> None:
    """Validate, and keep the best weights."""
    setup = training.setup
    validated = prepared.evaluate(setup) if setup.val_batches is not None else (None, {})
    epoch = Epoch(len(training.train_loss), *validated)
    training.epochs.append(epoch)
    if training.diverged:
        finite = [*map(isfinite, training.train_loss), False].index(False)
        attempt.lose(f"a loss was not finite after {finite} steps")
    if training.best_epoch is epoch:
        training.best_weights = weights.state_of(setup.model)


def _lost_attempts(kept: dict[str, Any]) -> list[LostAttempt]:
    return [
        LostAttempt(*_unpacked(*history), range=LRRange(*ends), reason=reason)
        for *history, ends, reason in kept["lost"]
    ]


def _save_checkpoint(
    path: Path, training: Training, take_step: TrainingStep, ranks: Ranks | None
) -> None:
    setup = training.setup
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    model = setup.model.state_dict()
    drawn = _random_state()
    content = {
        "lost": [(*_packed(each), astuple(each.range), each.reason) for each in training.lost],
        "history": _packed(training),
        "best": training.best_weights,
        "model": (_whole(dict(model), ranks), getattr(model, "_metadata", {})),
        "losses": [loss.state_dict() for loss in setup.loss_modules],
        "optimizer": _whole(setup.optimizer.state_dict(), ranks),
        "scaler": take_step.scaler.state_dict(),
        "batches": [generator.get_state() for generator in generators(setup.train_batches)],
        "epoch": getattr(setup.train_batches, "epoch", len(training.epochs)),
        "torch": [drawn] if ranks is None else ranks.all_gather(drawn),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
    }
    if ranks is not None and not ranks.is_first:
        return
    try:
        write_checkpoint(path, content)
    except (OSError, SafetensorError) as error:  # the disk is full: the training is worth more
        warnings.warn(f"no checkpoint is kept: {first_line(error)}", stacklevel=2)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """Return what torch draws from here on, on the CPU and on GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cuda


def _whole(state: Any, ranks: Ranks | None) -> Any:
    """Return a state with its parts on all ranks, on the CPU; on other ranks than 0, none of them.

    One tensor after the other: a device may have no memory for more.
    """

    def gathered(tensor: Tensor) -> Tensor | None:
        if not is_sharded(tensor):
            return tensor
        full = whole(tensor)
        return full.cpu() if ranks is None or ranks.is_first else None

    return tree_map_only(Tensor, gathered, state)


def _packed(history: TrainingHistory) -> tuple[Tensor, Tensor, list[tuple]]:
    lr, train_loss = (
        torch.tensor(s, dtype=torch.float64) for s in (history.lr, history.train_loss)
    )
    return lr, train_loss, [astuple(epoch) for epoch in history.epochs]


def _unpacked(lr: Tensor, train_loss: Tensor, epochs: list[tuple]) -> tuple[list, list, list]:
    return lr.tolist(), train_loss.tolist(), [Epoch(*values) for values in epochs]


def _load_checkpoint(
    content: dict[str, Any],
    training: Training,
    take_step: TrainingStep,
    schedule: LRScheduler,
    ranks: Ranks | None,
) -> None:
    setup = training.setup
    training.lr, training.train_loss, training.epochs = _unpacked(*content["history"])
    training.best_weights = content["best"]
    for _ in training.lr:
        schedule.step()
    state, versions = content["model"]
    own = setup.model.state_dict()
    model = OrderedDict((n, shard_like(value, own.get(n, value))) for n, value in state.items())
    model._metadata = versions  # type: ignore[attr-defined]
    setup.model.load_state_dict(model)
    for loss, state in zip(setup.loss_modules, content["losses"], strict=True):
        loss.load_state_dict(state)
    # After the schedule, so that the learning rates are bit-equal.
    setup.optimizer.load_state_dict(content["optimizer"])
    for parameter, values in setup.optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = shard_like(value, parameter)
    take_step.scaler.load_state_dict(content["scaler"])
    sources = generators(setup.train_batches)
    for generator, generated in zip(sources, content["batches"], strict=True):
        generator.set_state(generated)
    if isinstance(setup.train_batches, SharedBatches):
        setup.train_batches.epoch = content["epoch"]
    rank = 0 if ranks is None else ranks.share.rank
    if rank < len(content["torch"]):  # others have their seed: there were fewer then
        cpu, cuda = content["torch"][rank]
        torch.set_rng_state(cpu)
        if len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(content["numpy"])  # noqa: NPY002
    random.setstate(content["python"])
