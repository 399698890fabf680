"""One optimizer step, the same for the range test and for training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lrrt_stage.errors import LRRTError, describe, first_line
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state.device import to_device
from lrrt_stage.state.parts import attributes, is_iterator

__all__ = [
    "BatchLoss",
    "TrainingStep",
    "batch_loss_of",
    "endless",
    "layout_of",
    "lr_ratios",
    "none_left",
    "require_batches",
    "require_optimizer",
    "require_repeatable",
    "require_scalar",
]

BatchLoss = Callable[[Any], Tensor]
"""Function from a batch, already on the device, to its mean loss, a scalar."""

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TARGET_KEYS = ("labels", "label", "targets", "target", "y")
WANTS_A_CLOSURE = (
    *("closure", "first_step", "step() missing"),  # what optimizers say
    *("NotImplementedError", "'NoneType' object is not callable"),  # what SAM raises, and a call
)
"""What is in the error of an optimizer whose step needs a closure."""
BATCH_LOSS = "batch_loss, a function from a batch to its loss"
IN_EVALUATION = (
    "pass a batch_loss that works in evaluation mode too, or leave out the probe and the validation"
)
"""What to do where a model has no loss in evaluation mode, such as one that detects objects."""
REPEATABLE = "pass a DataLoader or a list, or have __iter__ return a new iterator at every call"


def layout_of(options: StepOptions) -> torch.memory_format:
    """Return the layout of 4-dimensional tensors."""
    return torch.channels_last if options.channels_last else torch.preserve_format


def batch_loss_of(model: nn.Module, loss_fn: Callable[..., Tensor] | None) -> BatchLoss:
    """Return a function from a batch of a usual form to its loss.

    - ``(x, y)`` or ``(x1, …, xn, y)``: ``loss_fn(model(x1, …, xn), y)``
    - a mapping: the target is its entry ``labels``, ``label``, ``targets``, ``target`` or ``y``;
      the remaining entries are passed to the model, a single one by position, several by keyword
    - ``loss_fn=None``, for models that compute their own loss: ``model(**batch)`` for a mapping,
      ``model(*batch)`` for a tuple or list, and ``model(batch)`` otherwise. The loss is the
      output's ``loss``, the output itself, its first element, or the sum of its losses by name.
    """

    def model_loss(batch: Any) -> Tensor:
        remedy = f"pass loss_fn, or {BATCH_LOSS}" if model.training else IN_EVALUATION
        named = batch if isinstance(batch, Mapping) else {}
        inputs = batch if isinstance(batch, (tuple, list)) else () if named else (batch,)
        return _own_loss(_called("the model", model, inputs, named, remedy), remedy)

    def target_loss(batch: Any) -> Tensor:
        assert loss_fn is not None
        if isinstance(batch, Mapping):
            inputs, named = [], dict(batch)
            key = next((key for key in TARGET_KEYS if key in named), None)
            if key is None:
                raise LRRTError(
                    f"no target among the batch's keys {sorted(named, key=str)}: name it "
                    f"{TARGET_KEYS[0]!r}, or pass {BATCH_LOSS}"
                )
            target = named.pop(key)
            if len(named) == 1:
                inputs, named = [*named.values()], {}
        elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
            (*inputs, target), named = batch, {}
        else:
            raise LRRTError(
                f"a batch is {describe(batch)}, not a tuple of inputs and target or a mapping: "
                f"pass {BATCH_LOSS}"
            )
        output = _called("the model", model, inputs, named)
        remedy = f"pass {BATCH_LOSS}" if model.training else IN_EVALUATION
        return _called("loss_fn", loss_fn, (output, target), {}, remedy)

    if loss_fn is None:
        return model_loss
    usable = callable(loss_fn) and not isinstance(loss_fn, type)
    require_kind(usable, "loss_fn", loss_fn, "pass a function or an instance, as nn.MSELoss()")
    return target_loss


def _own_loss(output: Any, remedy: str) -> Tensor:
    """Return the loss in the output of a model that computes its own."""
    named = isinstance(output, Mapping)
    loss = output.get("loss") if named else getattr(output, "loss", None)
    if loss is not None:
        return loss
    first = output[:1] if isinstance(output, (tuple, list)) else [output]
    losses = list(output.values() if named else first)
    # A metric beside the losses, which has no gradient, must not be added to them.
    require(
        all(isinstance(part, Tensor) and part.shape in ((), (1,)) for part in losses)
        and len({part.requires_grad for part in losses}) == 1,
        f"the model returned {describe(output)} without a loss: {remedy}",
    )
    return sum(losses[1:], start=losses[0])


def _called(
    name: str,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    named: Mapping[str, Any],
    remedy: str = f"pass {BATCH_LOSS}",
    usual: type = Tensor,
) -> Any:
    """Return the result of a call; raise LRRTError if the function is not made for these inputs.

    An error is the function's own if it accepts as many inputs, and all are of the ``usual`` type.
    """
    try:
        return function(*inputs, **named)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        given = (*inputs, *named.values())
        try:
            inspect.signature(getattr(function, "forward", function)).bind(*inputs, **named)
            own = all(isinstance(value, usual) for value in given)
        except (TypeError, ValueError):
            own = False
        if own:
            raise
        raise LRRTError(
            f"{name} does not take {describe(given)} ({type(error).__name__}: "
            f"{first_line(error)}): {remedy}"
        ) from error


def lr_ratios(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of every parameter group relative to the largest one.

    Where all are zero, as at the start of a warm-up, those that a scheduler has kept count.
    """
    rates = []
    for index, group in enumerate(optimizer.param_groups):
        lr: Any = group.get("lr")
        number = isinstance(lr, Real) or (isinstance(lr, Tensor) and lr.numel() == 1)
        require(
            number and 0 <= float(lr) < inf,
            f"group {index} of {type(optimizer).__name__} has lr={lr!r}: make the optimizer with a "
            "learning rate of its own, such as lr=0.1",
        )
        rates.append(float(lr))
    if max(rates) == 0:
        rates = [float(group.get("initial_lr", 0)) for group in optimizer.param_groups]
    largest = max(rates)
    return [lr / largest if largest > 0 else 1.0 for lr in rates]


def require_optimizer(optimizer: Any) -> None:
    """Raise LRRTError unless ``optimizer`` has parameter groups."""
    usable = hasattr(optimizer, "param_groups")
    require_kind(usable, "the optimizer", optimizer, "pass an instance of an Optimizer")


def require_batches(name: str, value: Any) -> None:
    """Raise LRRTError unless ``value`` is several batches that can be iterated again.

    A dataset of single examples, a single batch, and an iterator are not.
    """
    iterable = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    single = isinstance(value, (Dataset, Mapping, Tensor, str)) and not isinstance(
        value, IterableDataset
    )
    # An iterator of one's own may hold one of Python.
    held = attributes(value).values() if isinstance(value, Iterator) else ()
    fits = iterable and not single and not any(map(is_iterator, (value, *held)))
    require_kind(fits, name, value, "pass a DataLoader or a list of batches")


def require_repeatable(name: str, batches: Iterable[Any]) -> None:
    """Raise LRRTError if all iterations of ``batches`` share one iterator of Python or a loader.

    This begins two iterations, so give batches that are not used otherwise.
    """
    if isinstance(batches, DataLoader):  # whose iterator can begin again
        return
    iterator = iter(batches)
    require(
        not (is_iterator(iterator) and iter(batches) is iterator),
        f"{name} is {describe(batches)}, which can be iterated only once: {REPEATABLE}",
    )


def require_scalar(loss: Any, remedy: str = f"pass {BATCH_LOSS}") -> Tensor:
    """Return the loss; raise LRRTError unless it is a tensor of one real number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise LRRTError(
            f"the loss is {describe(loss)}: return a tensor of one real number, e.g. with "
            f"reduction='mean', or {remedy}"
        )
    return loss


def endless(batches: Iterable[Any], name: str = "batches") -> Iterator[Any]:
    """Yield batches without end: ``batches`` is iterated again whenever it runs out."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise none_left(name)


def none_left(name: str) -> LRRTError:
    """Return the error for batches of which an iteration gave none."""
    return LRRTError(
        f"there are no {name} left: there were none, or they can be iterated only once; "
        f"{REPEATABLE}"
    )


class TrainingStep:
    """Takes one optimizer step, and returns its loss without waiting for the device.

    In fp16 this takes a fused optimizer, see :class:`StepOptions`.

    The range test and the training share this class, so that the loss of the first batch is the
    same in both. The loss is that of the weights before the step; with accumulation, it is the
    mean over the batches of the step.

    Raises
    ------
    LRRTError
        At the first step, for an optimizer whose ``step()`` needs a closure, such as LBFGS or SAM.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batch_loss: BatchLoss,
        options: StepOptions,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.batch_loss = model, optimizer, batch_loss
        self.options, self.device = options, device
        self.dtype = DTYPES[options.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def __call__(
        self, batches: Iterator[Any], before: Callable[[], object] | None = None
    ) -> Tensor:
        """Draw the batches, take the step, and return the loss, a detached scalar on the device.

        ``before`` is called at the weights before the step, when the gradients of the last one are
        gone, whose memory it may need.
        """
        self.optimizer.zero_grad()
        if before is not None:
            before()
        losses = [self._backward(next(batches)) for _ in range(self.options.accumulate)]
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        try:
            self.scaler.step(self.optimizer)
        except Exception as error:
            step = f"{type(self.optimizer).__name__}.step()"
            if "train mode" in str(error):  # a schedule-free optimizer's
                raise LRRTError(f"{step}: {first_line(error)}: call optimizer.train()") from error
            if not any(word in repr(error) for word in WANTS_A_CLOSURE):
                raise
            raise LRRTError(
                f"{step} needs a closure, to evaluate the loss several times a step: use one that "
                "needs one gradient, such as SGD or AdamW"
            ) from error
        self.scaler.update()
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def on_device(self, batch: Any) -> Any:
        """Return the batch on the device, in the memory format of the options."""
        return to_device(batch, self.device, layout_of(self.options))

    def loss_of(self, batch: Any, batch_loss: BatchLoss | None = None) -> Tensor:
        """Return the loss of a batch, in the precision of the options, before ``backward()``.

        If given, ``batch_loss`` replaces the training loss.
        """
        batch = self.on_device(batch)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss_of = batch_loss or self.batch_loss
            return _called(
                "batch_loss",
                loss_of,
                (batch,),
                {},
                "pass a function from a batch to its loss",
                object,
            )

    def _backward(self, batch: Any) -> Tensor:
        loss = require_scalar(self.loss_of(batch))
        if not loss.requires_grad:
            raise LRRTError(
                "the loss does not depend on any trainable parameter: check requires_grad, and "
                "that the loss function neither detaches nor runs under no_grad"
            )
        part = loss if self.options.accumulate == 1 else loss / self.options.accumulate
        self.scaler.scale(part).backward()
        return loss.detach().reshape(())
