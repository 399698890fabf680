"""Callbacks of Lightning: the tracked range test, and the guard of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import mlflow
import torch
from mlflow.tracking import fluent
from torch import Tensor

from lrrt_stage import Attempt, LRRTError
from lrrt_stage.adapters import from_lightning, set_lightning_lr
from mlflow_project.callbacks.apply import test_and_apply
from mlflow_project.handoff.handoff import Handoff

try:
    from lightning.pytorch import Callback
except ImportError:  # the other name under which it is published
    from pytorch_lightning import Callback  # type: ignore[assignment]

__all__ = ["LRRangeTest", "WatchAttempt"]


class LRRangeTest(Callback):
    """Runs :func:`track_range_test` when ``fit`` starts, and trains with what it found.

    The optimizer's learning rates and those of its schedulers are scaled so that the largest is the
    maximum of the suggested range. An ``lr`` or ``learning_rate`` of the module is set as well, so
    that loggers record the one that is used. The run of the test is a child of the active run, or
    of the run of an ``MLFlowLogger``.

    Examples
    --------
    >>> Trainer(callbacks=[LRRangeTest(lr_end=10)]).fit(module, datamodule)  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        """Keep options of :func:`track_range_test`, such as ``rule``, ``name`` and ``lr_end``."""
        self.options = options
        self.handoff: Handoff | None = None
        """The hand-off of the test, once ``fit`` has started."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Run the test, unless ``fit`` resumes from a checkpoint."""
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            return
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        arguments = from_lightning(pl_module, trainer=trainer)
        with _run_of_logger(trainer):
            self.handoff = test_and_apply(arguments, schedulers, self.options)
        with suppress(LRRTError):  # a module without a learning rate that would be logged
            set_lightning_lr(pl_module, self.handoff.narrowed().max)


class WatchAttempt(Callback):
    """Shows the training losses of ``fit`` to an attempt, and ends ``fit`` if it is lost.

    The modules of Lightning keep their state, so make a new one for every attempt.

    Examples
    --------
    >>> for attempt in handoff.guard():                          # doctest: +SKIP
    ...     module = Module(lr=attempt.range.max)
    ...     handoff.load_weights(module)
    ...     Trainer(callbacks=[WatchAttempt(attempt)]).fit(module, datamodule)
    """

    def __init__(self, attempt: Attempt) -> None:
        """Keep the attempt, of :meth:`Handoff.guard` or :class:`lrrt_stage.Guard`."""
        self.attempt = attempt
        self._losses: list[Tensor] = []
        self._steps = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss of a step, which is the mean over its batches."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):  # training_step has skipped the batch
            return
        # Lightning has divided it by the number of batches of a step.
        self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        mean = torch.stack(self._losses).mean()
        self._losses = []
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        if self.attempt.watch(mean, max(float(group["lr"]) for group in groups)):
            trainer.should_stop = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count from the step that a checkpoint has."""
        self._steps = trainer.global_step

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Read the last losses."""
        self.attempt.read()


@contextmanager
def _run_of_logger(trainer: Any) -> Iterator[None]:
    """Make the run of an MLFlowLogger the active one, where no other is."""
    loggers = [each for each in trainer.loggers if hasattr(each, "_tracking_uri")]
    run_id = loggers[0].run_id if loggers else None  # None on ranks that log nothing, too
    if mlflow.active_run() is not None or run_id is None:
        yield
        return
    # MLflow refuses a run of another experiment than the one that was set.
    chosen = fluent._active_experiment_id
    fluent._active_experiment_id = None
    try:
        with mlflow.start_run(run_id):
            yield
    finally:
        fluent._active_experiment_id = chosen
        # The logger goes on with it.
        mlflow.MlflowClient().update_run(run_id, status="RUNNING")
