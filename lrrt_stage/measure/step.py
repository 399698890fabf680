"""One optimizer step, the same for the range test and for training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import Options, require, setting
from lrrt_stage.state.device import to_device

__all__ = [
    "BatchLoss",
    "BatchStream",
    "StepOptions",
    "TrainingStep",
    "batch_loss_of",
    "require_scalar",
]

BatchLoss = Callable[[Any], Tensor]
"""From a batch, already on the device, to its scalar mean loss."""

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class StepOptions(Options):
    """How a step is taken; a range test and the training after it must agree on all of it.

    With ``precision="fp16"`` the loss is scaled, and a step whose gradients overflow is left out.
    An optimizer made with ``fused=True`` looks at that on the device; with any other,
    ``torch.amp.GradScaler`` makes the host wait for the device at every step.
    """

    accumulate: int = setting(1, "Batches whose gradients are accumulated for one step.", minimum=1)
    clip_norm: float | None = setting(
        None, "Clip the gradient's global norm to this; none: off.", above=0
    )
    precision: str = setting(
        "fp32", "Arithmetic: fp32, or autocast to bf16 or fp16.", choices=PRECISIONS
    )
    channels_last: bool = setting(False, "Lay images and weights out channels last.")

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of 4-dimensional tensors."""
        return torch.channels_last if self.channels_last else torch.preserve_format


def batch_loss_of(model: nn.Module, loss_fn: Callable[..., Tensor] | None) -> BatchLoss:
    """Return the loss of a batch, for the shapes that batches usually have.

    - ``(x, y)`` or ``(x1, …, xn, y)``: ``loss_fn(model(x1, …, xn), y)``
    - a mapping: the target is its entry ``labels``, ``label``, ``targets``, ``target`` or ``y``;
      what is left is given to the model by position if it is one tensor, else by keyword
    - ``loss_fn=None``: ``model(**batch).loss`` for a mapping, ``model(*batch).loss`` else, as
      models do that compute their own loss
    """

    def own_loss(batch: Any) -> Tensor:
        output = model(**batch) if hasattr(batch, "items") else model(*batch)
        loss = output["loss"] if isinstance(output, dict) else getattr(output, "loss", None)
        if loss is None:
            raise LRRTError(
                f"the model returned {type(output).__name__} without a loss: pass loss_fn"
            )
        return loss

    def outer_loss(batch: Any) -> Tensor:
        assert loss_fn is not None
        if hasattr(batch, "items"):
            inputs = dict(batch)
            key = next((key for key in TARGET_KEYS if key in inputs), None)
            if key is None:
                raise LRRTError(
                    f"no target among the batch's keys {sorted(inputs)}: name it "
                    f"{TARGET_KEYS[0]!r}, or pass batch_loss, a function from a batch to its loss"
                )
            target = inputs.pop(key)
            output = model(*inputs.values()) if len(inputs) == 1 else model(**inputs)
            return loss_fn(output, target)
        if isinstance(batch, (tuple, list)) and len(batch) >= 2:
            return loss_fn(model(*batch[:-1]), batch[-1])
        raise LRRTError(
            f"a batch is {type(batch).__name__}, not a tuple of inputs and target or a mapping: "
            "pass batch_loss, a function from a batch to its loss"
        )

    return own_loss if loss_fn is None else outer_loss


def require_scalar(loss: Any) -> Tensor:
    """Return the loss; raise LRRTError unless it is a tensor of one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LRRTError(f"the loss has {got}: return one number, e.g. with reduction='mean'")
    return loss


class BatchStream(Iterator[Any]):
    """Batches without end: what is iterated is started again whenever it runs out."""

    def __init__(self, batches: Iterable[Any], per_iteration: int = 1) -> None:
        self.batches, self.per_iteration = batches, per_iteration
        self._iterator = iter(batches)
        self._fresh = True

    def __next__(self) -> Any:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._fresh:
                raise LRRTError(
                    "there are no batches left: pass something with at least one batch that can be "
                    "iterated again (a DataLoader or a list, not a generator)"
                ) from None
            self._iterator, self._fresh = iter(self.batches), True
            return next(self)
        self._fresh = False
        return batch

    def epochs(self, iterations: int) -> float | None:
        """Return the passes over the data that ``iterations`` take, if it has a length."""
        try:
            return iterations * self.per_iteration / len(self.batches)  # type: ignore[arg-type]
        except TypeError:
            return None


class TrainingStep:
    """Takes one optimizer step and returns its loss without waiting for the device.

    In fp16 that holds for a fused optimizer alone, see :class:`StepOptions`.

    Shared by the range test and by training, so that the loss of the first batch is the same in
    both. The loss is that of the weights before the step; with accumulation, the mean over the
    step's batches.

    Raises
    ------
    LRRTError
        For an optimizer whose ``step()`` needs a closure, as that of LBFGS does.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batch_loss: BatchLoss,
        options: StepOptions,
        device: torch.device,
    ) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        require(
            closure is None or closure.default is not inspect.Parameter.empty,
            f"{type(optimizer).__name__}.step() needs a closure, which evaluates the loss more "
            "than once a step: use an optimizer that takes one gradient, as SGD or AdamW do",
        )
        self.model, self.optimizer, self.batch_loss = model, optimizer, batch_loss
        self.options, self.device = options, device
        self.dtype = PRECISIONS[options.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def __call__(self, batches: Iterator[Any]) -> Tensor:
        """Draw the step's batches, step, and return the loss, a detached scalar on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(next(batches)) for _ in range(self.options.accumulate)]
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def on_device(self, batch: Any) -> Any:
        """Return the batch on the device, laid out as the options say."""
        return to_device(batch, self.device, self.options.memory_format)

    def loss_of(self, batch: Any, batch_loss: BatchLoss | None = None) -> Tensor:
        """Return a batch's loss in the precision of the options, not yet differentiated.

        ``batch_loss`` is used in place of the step's own.
        """
        batch = self.on_device(batch)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return (batch_loss or self.batch_loss)(batch)

    def _backward(self, batch: Any) -> Tensor:
        loss = require_scalar(self.loss_of(batch))
        if not loss.requires_grad:
            raise LRRTError(
                "the loss does not depend on any trainable parameter: check requires_grad, and "
                "that the loss function does not detach or run under no_grad"
            )
        self.scaler.scale(loss / self.options.accumulate).backward()
        return loss.detach().reshape(())
