"""Goes through one ramp of learning rates, and leaves everything as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.measure.loss_recorder import Record
from lrrt_stage.measure.probe import Probe
from lrrt_stage.measure.step import BatchLoss, BatchStream, StepOptions, TrainingStep
from lrrt_stage.measure.validation import Validation, Validator
from lrrt_stage.state.device import deterministic
from lrrt_stage.state.preserve import preserved
from lrrt_stage.state.randomness import seeded

__all__ = ["Measurement", "RangeTestInterrupted"]


class RangeTestInterrupted(KeyboardInterrupt):
    """Ctrl-C during a range test. ``curve`` is what was measured until then."""

    def __init__(self, curve: LRCurve) -> None:
        super().__init__(f"range test interrupted after {len(curve)} iterations")
        self.curve = curve


@dataclass(frozen=True)
class Measurement:
    """What a range test is made with, but for its learning rates; see :func:`range_test`."""

    model: nn.Module
    optimizer: Optimizer
    batches: Iterable[Any]
    batch_loss: BatchLoss
    step: StepOptions
    device: torch.device
    stop_multiple: float | None
    beta: float
    """Of the average that the stop rule looks at."""
    probe: Any | None = None
    validation: Validation | None = None
    outside: BatchLoss | None = None
    """Loss of what is not trained on; None for that of the training."""
    losses: tuple[nn.Module, ...] = ()
    """Modules that the losses are computed by."""

    def along(self, lr: np.ndarray, progress: Callable[[int], None] | None = None) -> LRCurve:
        """Take a step at each learning rate, in their order, until the stop rule ends it.

        Parameters
        ----------
        lr
            Shape ``[n]``.
        progress
            Called after every step with the number of those taken.

        Raises
        ------
        LRRTError
            For batches, an optimizer or a loss that cannot be used.
        RangeTestInterrupted
            On Ctrl-C; before the first step its curve is empty.
        """
        record = Record(lr, self.stop_multiple, self.beta)
        sources = self.batches, self.probe, self.validation
        kept = preserved(self.model, self.optimizer, sources, self.device, self.losses)
        with kept, deterministic(), torch.enable_grad():
            for loss in self.losses:
                loss.to(self.device)
            self.model.to(self.device).to(memory_format=self.step.memory_format)
            self.model.train()
            take_step = TrainingStep(
                self.model, self.optimizer, self.batch_loss, self.step, self.device
            )
            look = self._looks(take_step, len(lr))
            stream = BatchStream(self.batches, self.step.accumulate)
            set_lr = _lr_setter(self.optimizer)
            try:
                for iteration, value in enumerate(lr.tolist()):
                    set_lr(value)
                    others = look(iteration)
                    record.add(take_step(stream), **others)
                    if progress is not None:
                        progress(iteration + 1)
                    if record.should_stop():
                        break
            except KeyboardInterrupt:
                raise RangeTestInterrupted(record.curve(stream, "interrupted")) from None
            return record.curve(stream)

    def _looks(
        self, take_step: TrainingStep, iterations: int
    ) -> Callable[[int], dict[str, Tensor]]:
        """Return a function from an iteration to the losses of what is not trained on, by name.

        What they draw at random is the same at every iteration, and training draws what it would.
        """

        def loss_of(batch: Any) -> Tensor:
            return take_step.loss_of(batch, self.outside)

        looks: list[Callable[[int], dict[str, Tensor]]] = []
        if self.probe is not None:
            probed = Probe(self.model, take_step.on_device(self.probe), loss_of, self.losses)
            looks.append(lambda iteration: {"probe_loss": probed()})
        if self.validation is not None:
            sample = [take_step.on_device(batch) for batch in self.validation.sample]
            validation = replace(self.validation, sample=sample)
            looks.append(Validator(self.model, validation, loss_of, iterations, self.device))
        if not looks:
            return lambda iteration: {}

        def look(iteration: int) -> dict[str, Tensor]:
            with seeded(0):
                return {name: loss for each in looks for name, loss in each(iteration).items()}

        return look


def _lr_setter(optimizer: Optimizer) -> Callable[[float], None]:
    """Return a function that sets every group's LR, keeping the ratios between the groups."""
    found = [float(group["lr"]) for group in optimizer.param_groups]
    largest = max(found)
    ratios = [lr / largest if largest > 0 else 1.0 for lr in found]

    def set_lr(value: float) -> None:
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value * ratio)
            else:
                group["lr"] = value * ratio

    return set_lr
