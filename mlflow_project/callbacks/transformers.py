"""Callbacks of a transformers ``Trainer``: the tracked range test, and the guard of a training."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from lrrt_stage import Attempt
from lrrt_stage.adapters import from_transformers
from mlflow_project.callbacks.apply import test_and_apply
from mlflow_project.handoff.handoff import Handoff

__all__ = ["LRRangeTest", "WatchAttempt"]


class LRRangeTest(TrainerCallback):
    """Runs :func:`track_range_test` before the first step, and trains with what it found.

    The optimizer's learning rates and those of its scheduler are scaled so that the largest is the
    maximum of the suggested range; ``args.learning_rate`` is set as well. The run of the test is a
    child of the run that MLflow's callback of transformers has opened, or of the active one.

    Examples
    --------
    >>> trainer.add_callback(LRRangeTest(trainer, lr_end=1))     # doctest: +SKIP
    >>> trainer.train()                                          # doctest: +SKIP
    """

    def __init__(self, trainer: Any, **options: Any) -> None:
        """Keep the Trainer, and options of :func:`track_range_test` such as ``rule``."""
        self.trainer, self.options = trainer, options
        self.handoff: Handoff | None = None
        """The hand-off of the test, once the training has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the test, unless the training resumes from a checkpoint."""
        if state.global_step > 0:
            return
        scheduler = kwargs["lr_scheduler"]
        schedulers = [getattr(scheduler, "scheduler", scheduler)]  # Accelerate may have wrapped it
        self.handoff = test_and_apply(from_transformers(self.trainer), schedulers, self.options)
        args.learning_rate = self.handoff.narrowed().max


class WatchAttempt(TrainerCallback):
    """Shows the training losses that the Trainer logs to an attempt, and ends it if it is lost.

    They are means over ``logging_steps``: set a small number, such as 10. By default the Trainer
    hides losses that are not finite; ``logging_nan_inf_filter=False`` shows them. Make a new
    Trainer and a new model for every attempt.

    Examples
    --------
    >>> for attempt in handoff.guard():                          # doctest: +SKIP
    ...     model = Model(config)
    ...     handoff.load_weights(model)
    ...     arguments = TrainingArguments(…, learning_rate=attempt.range.max, logging_steps=10)
    ...     Trainer(model, arguments, callbacks=[WatchAttempt(attempt)], …).train()
    """

    def __init__(self, attempt: Attempt) -> None:
        """Keep the attempt, of :meth:`Handoff.guard` or :class:`lrrt_stage.Guard`."""
        self.attempt = attempt
        self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count from the step that a checkpoint has."""
        self._steps = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take the mean loss of the steps since the last log."""
        if not logs or "loss" not in logs:
            return
        steps, self._steps = state.global_step - self._steps, state.global_step
        for _ in range(steps):
            self.attempt.watch(float(logs["loss"]), logs.get("learning_rate"))
        if self.attempt.is_lost:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the last losses."""
        self.attempt.read()
