"""The tracked range test as a callback of a transformers ``Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from lrrt_stage.adapters import from_transformers
from mlflow_project.callbacks.apply import test_and_apply
from mlflow_project.handoff.handoff import Handoff

__all__ = ["LRRangeTest"]


class LRRangeTest(TrainerCallback):
    """Runs :func:`track_range_test` before the first step, and trains with what it found.

    The optimizer's learning rates and those of its scheduler are scaled so that the largest is the
    maximum of the narrowed range; ``args.learning_rate`` is set as well. The run of the test is a
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
