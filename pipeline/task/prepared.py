"""A task made ready to run: data loaded and checked, device chosen, and equal starts from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lrrt_stage import (
    LRCurve,
    LRRTError,
    Validation,
    initialize,
    range_test,
    resolve_device,
    seeded,
)
from lrrt_stage.measure.step import BatchLoss, batch_loss_of
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from lrrt_stage.state.preserve import evaluating, preserved_sources
from pipeline.data.batches import Batches
from pipeline.data.datasets import load_data
from pipeline.data.splits import Data
from pipeline.models.networks import build_model, check_output
from pipeline.models.optimizers import build_optimizer
from pipeline.task.plan import RangeTestPlan, ValidationOptions, full_evaluations, stratified
from pipeline.task.tasks import Runtime, Task

__all__ = ["PreparedTask", "Start"]


@dataclass(frozen=True)
class Start:
    """What an experiment starts from, the same every time."""

    model: nn.Module
    """The model on the device, with the initial weights."""
    optimizer: Optimizer
    batches: Batches
    batch_loss: BatchLoss
    """From a batch on the device to the scalar loss that range test and training minimise.

    It is the mean cross entropy; with the task's ``l2`` above 0, plus ``l2`` times the sum of
    squares of all trainable weights of linear and convolutional layers, as Keras' kernel
    regularisers add it (no biases, no norm layers; a weight that layers share counts once). So
    the recorded training loss includes the penalty, and so does the gradient that is clipped."""


class PreparedTask:
    """A task on a device; ``data`` is its dataset, if it is loaded already.

    Raises
    ------
    LRRTError
        If the data, the model, the batch size or the device cannot be used, before any work.
        From splits on disk, only the first validation batch is read here; ``train`` reads the
        complete validation split before its first epoch.
    """

    loss_fn = staticmethod(cross_entropy)

    def __init__(
        self, task: Task, runtime: Runtime | None = None, data: Data | None = None
    ) -> None:
        runtime = runtime or Runtime()
        self.task, self.runtime = task, runtime
        self.device = resolve_device(runtime.device)
        data = data or load_data(task.dataset, task.dataset_args, runtime.data_dir)
        # Moved once, for all starts.
        self.data = data.to(self.device)
        self.val_batches = self._batches(train=False)
        self._batches(train=True)  # raises if they cannot be made
        inputs, _ = next(iter(self.val_batches))
        # Two examples if training has as many, even if the validation split has only one.
        inputs = torch.cat([inputs[:2]] * 2)[: min(2, task.batch_size)]
        model = self.model().to(self.device)
        # Checked before the model runs: parameters that it makes in its first forward pass would
        # be missing from the initial weights.
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise LRRTError(
                f"model {task.model!r} has no trainable parameter: set requires_grad on some, and "
                "have the constructor make all of them (give the shape of the inputs there)"
            )
        require(
            task.l2 == 0 or bool(_kernels(model)),
            f"l2={task.l2} has no effect, model {task.model!r} has no trainable linear or "
            "convolutional torch layer: use l2=0 and weight_decay",
        )
        with seeded(task.seed):
            check_output(model, inputs, self.data.num_classes, task.model)

    def model(self) -> nn.Module:
        """Return a new model on the CPU, as its constructor makes it with the task's seed."""
        with seeded(self.task.seed):
            return build_model(
                self.task.model,
                self.task.model_args,
                self.data.input_shape,
                self.data.num_classes,
            )

    def initial_weights(self, pretrained: weights.State | None = None) -> dict[str, Tensor]:
        """Return parameters and buffers before the first step, on the CPU.

        They are drawn with the task's seed, or those of ``pretrained``, which must be given for an
        ``init`` of ``run:ID`` (only the caller knows where runs are).
        """
        model = self.model()
        if self.task.init.startswith("file:"):
            pretrained = weights.load(self.task.init.removeprefix("file:"))
        require(
            pretrained is not None or not self.task.init.startswith("run:"),
            f"init={self.task.init!r} names a run: pass its weights as pretrained",
        )
        if pretrained is not None:
            weights.load_into(model, pretrained)
        else:
            initialize(model, self.task.init, self.task.seed)
        return weights.state_of(model)

    def start(self, state: weights.State) -> Start:
        """Return a model with the weights ``state``, a new optimizer, batches and their loss.

        Every call returns an equal start, so that experiments differ only in what follows.
        """
        model = self.model()
        weights.load_into(model, state)
        model.to(self.device).to(memory_format=self.task.memory_format)
        optimizer = build_optimizer(
            self.task.optimizer, model.parameters(), self.task.momentum, self.task.weight_decay
        )
        return Start(model, optimizer, self._batches(train=True), self._batch_loss(model))

    def range_test(
        self,
        state: weights.State,
        plan: RangeTestPlan | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LRCurve:
        """Run the range test from the weights ``state``."""
        start = self.start(state)
        plan = plan or RangeTestPlan()
        iterations = plan.ramp.iterations_for(start.batches, self.task.accumulate)
        # Separate, so that the test draws the same numbers whatever is evaluated.
        with seeded(self.task.data_seed), preserved_sources(self.data):
            probe_size = plan.validation.probe_size(self.task.batch_size, self.val_batches.size)
            probe = self._sample(probe_size) if probe_size > 0 else None
            validation = self._validation(start.model, plan.validation, iterations)
        with seeded(self.task.data_seed):
            return range_test(
                start.model,
                start.optimizer,
                self.loss_fn,
                start.batches,
                plan.ramp,
                step=self.task,
                smoothing=plan.smoothing,
                batch_loss=start.batch_loss,
                probe=probe,
                validation=validation,
                progress=progress,
            )

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Return mean loss and accuracy (0 … 1) over the validation split, in eval mode.

        The model is restored: the training that follows is the same as without.
        """
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        with evaluating([model]):
            for inputs, labels in self.val_batches:
                output = model(inputs)
                loss += self.loss_fn(output, labels, reduction="sum")
                correct += (output.argmax(dim=1) == labels).sum()
        # Both are read from the device at once.
        loss_sum, correct_sum = torch.stack([loss, correct]).tolist()
        return loss_sum / self.val_batches.size, correct_sum / self.val_batches.size

    def _sample(self, size: int) -> tuple[Tensor, Tensor]:
        return self.val_batches.chosen(stratified(self.data.val_labels, size))

    def _validation(
        self, model: nn.Module, options: ValidationOptions, iterations: int
    ) -> Validation | None:
        if options.validation == "none":
            return None
        batch_loss = batch_loss_of(model, self.loss_fn)
        if options.validation == "full":
            return Validation(list(self.val_batches), batch_loss=batch_loss)
        size = options.sample_size(self.task.batch_size, self.val_batches.size)
        trained = iterations * self.task.batch_size * self.task.accumulate
        evaluations = full_evaluations(trained, self.val_batches.size)
        return Validation([self._sample(size)], self.val_batches, evaluations, batch_loss)

    def _batch_loss(self, model: nn.Module) -> BatchLoss:
        plain, l2 = batch_loss_of(model, self.loss_fn), self.task.l2

        def penalised(batch: Any) -> Tensor:
            # One vector, so that the cost does not grow with the number of layers.
            kernels = torch.cat([kernel.flatten() for kernel in _kernels(model)])
            return plain(batch) + l2 * kernels.square().sum()

        return penalised if l2 > 0 else plain

    def _batches(self, *, train: bool) -> Batches:
        return Batches(
            self.data,
            self.task.batch_size,
            self.device,
            train=train,
            seed=self.task.data_seed if train else 0,
            augment=self.task.augment if train else "none",
            normalize=self.task.normalize,
            loader_workers=self.runtime.loader_workers,
        )


def _kernels(model: nn.Module) -> list[Tensor]:
    """Return the trainable weights of linear and convolutional layers, each once."""
    kernels = (
        layer.weight for layer in model.modules() if isinstance(layer, weights.KERNEL_LAYERS)
    )
    return list({id(kernel): kernel for kernel in kernels if kernel.requires_grad}.values())
