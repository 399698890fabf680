"""What a training consists of: a :class:`Setup`, made by a factory of the user's or built in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from posixpath import normpath
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.measure.evaluations import examples_in
from lrrt_stage.measure.ramp_loop import require_trainable
from lrrt_stage.measure.ramps import epoch_length
from lrrt_stage.measure.step import (
    BatchLoss,
    batch_loss_of,
    lr_ratios,
    none_left,
    require_batches,
)
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state.preserve import move_optimizer
from pipeline.ranks.group import Ranks
from pipeline.ranks.share import ALONE, SharedBatches, is_shared

__all__ = ["Deployed", "Metric", "Setup", "SetupFactory"]

Direction = Literal["max", "min"]
Metric: TypeAlias = Any
"""A ``torchmetrics.Metric``, or a function ``(output, target)`` to the mean over a batch. A pair
``(metric, "max")`` or ``(metric, "min")`` says which values are better; only a torchmetrics.Metric
with a ``higher_is_better`` can do without."""

Deployed: TypeAlias = tuple[nn.Module, Tensor]
"""A model as it is logged, which may include preprocessing, and an example of its inputs."""


@dataclass(eq=False, kw_only=True)
class Setup:
    """A training: model, optimizer, batches, loss, and metrics.

    Parameters
    ----------
    model, optimizer
        A new model on the CPU with its initial weights, and an optimizer of its parameters.
        Parameter groups keep the ratio of their learning rates.
    train_batches, val_batches
        ``DataLoader`` objects or anything else with a length that can be iterated repeatedly; every
        iteration is an epoch. Without validation batches, rules read the training loss, and a
        refinement is not possible.
    loss_fn
        ``loss_fn(output, target)``, a scalar; None for a model whose output has ``.loss``. See
        :func:`lrrt_stage.measure.step.batch_loss_of` for the supported batches.
    batch_loss
        ``batch_loss(model, batch)``, the training loss of batches of any other form, or a training
        loss with a penalty. The validation loss is that of ``loss_fn``, where it is given as well.
    metrics
        Name -> :data:`Metric`, computed over the validation batches and logged as ``val_<name>``.
        They get the output of the model and the target, or the whole batch if there is no
        ``loss_fn``.
    probe
        Function from a number to a batch of that many held-out examples, for the rule ``robust``;
        None: the first validation batch.
    data_digest
        Identifies the content of the data; None: a digest of the first batches.
    deployed
        Function from the trained model to what is logged, which is also tried on a new model before
        the training; None: the model, if it takes one tensor.
    """

    model: nn.Module
    optimizer: Optimizer
    train_batches: Iterable[Any]
    val_batches: Iterable[Any] | None = None
    loss_fn: Callable[..., Tensor] | None = None
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    probe: Callable[[int], Any] | None = None
    data_digest: str | None = None
    deployed: Callable[[nn.Module], Deployed] | None = None
    _shared_loss: BatchLoss | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("loss_fn", "batch_loss", "probe", "deployed"):
            value = getattr(self, name)
            usable = value is None or (callable(value) and not isinstance(value, type))
            require_kind(usable, name, value, "give a function, or an instance that can be called")
        named = isinstance(self.metrics, Mapping)
        require_kind(named, "metrics", self.metrics, "give a mapping from names to metrics")
        require_trainable(self.model, self.optimizer)
        lr_ratios(self.optimizer)
        held_out = {} if self.val_batches is None else {"val_batches": self.val_batches}
        for name, batches in {"train_batches": self.train_batches, **held_out}.items():
            require_batches(name, batches)
            require(
                epoch_length(batches) > 0,
                f"{name} has no batch or no length: give a DataLoader, or any other object with a "
                "length that can be iterated repeatedly",
            )
        for name in self.metrics:
            # As MLflow takes names, which are those of files as well.
            plain = re.fullmatch(r"[\w. :/-]{1,246}", str(name)) is not None
            require(
                name != "loss" and plain and normpath(f"val_{name}") == f"val_{name}",
                f"metric {str(name)[:100]!r} cannot be logged by this name: use some letters, "
                "digits, _ and -, and another name than that of the loss",
            )
        text = self.data_digest is None or isinstance(self.data_digest, str)
        require_kind(text, "data_digest", self.data_digest, "give a text, or leave it out")
        self.directions = {name: _direction(name, each) for name, each in self.metrics.items()}

    @property
    def losses(self) -> list[Callable[..., Tensor]]:
        """The loss functions that were given."""
        return [loss for loss in (self.loss_fn, self.batch_loss) if loss is not None]

    @property
    def loss_modules(self) -> list[nn.Module]:
        """The losses that are modules."""
        return [loss for loss in self.losses if isinstance(loss, nn.Module)]

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> None:
        """Move model, optimizer and losses to a device; images and weights get the ``layout``."""
        found = next(self.model.parameters()).device
        self.model.to(device).to(memory_format=layout)
        move_optimizer(self.optimizer, found, device)
        for loss in self.loss_modules:
            loss.to(device)

    def share_with(self, ranks: Ranks) -> None:
        """Train the model together with the other ranks, each on its part of the batches."""
        # FSDP takes a second to import, which a process that is alone does not need.
        from pipeline.ranks.model import share_model

        if ranks.options.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        agree = ranks.agree_on_randomness
        self.train_batches = SharedBatches(self.train_batches, ranks.share, agree)
        self._shared_loss = share_model(
            ranks, self.model, self.optimizer, self._loss(), self.loss_modules
        )

    @property
    def training_loss(self) -> BatchLoss:
        """The loss that is minimised, from a batch on the device."""
        return self._shared_loss or self._loss()

    def _loss(self) -> BatchLoss:
        if self.batch_loss is None:
            return self.evaluation_loss
        model, batch_loss = self.model, self.batch_loss
        return lambda batch: batch_loss(model, batch)

    @property
    def evaluation_loss(self) -> BatchLoss:
        """The loss of held-out batches: that of training, without a penalty."""
        if self.batch_loss is not None and self.loss_fn is None:
            return self._loss()
        return batch_loss_of(self.model, self.loss_fn)

    def evaluate(
        self,
        on_device: Callable[[Any], Any],
        ranks: Ranks | None = None,
    ) -> tuple[float, dict[str, float]]:
        """Return mean loss and metrics over the validation batches, at the model's weights.

        The loss and plain functions are means over the batches, weighted by their examples. The
        device is waited for once, at the end. Modes are the caller's. Each of the ``ranks``
        evaluates some of the batches, or those that are its own, and all return the means over all.
        """
        share = ALONE if ranks is None or is_shared(self.val_batches) else ranks.share
        assert self.val_batches is not None
        device = next(self.model.parameters()).device
        total, count = torch.zeros((), device=device), 0  # type: Tensor, Any
        sums: dict[str, Any] = dict.fromkeys(self.metrics, 0.0)
        functions = {name: _function(metric) for name, metric in self.metrics.items()}
        for metric in filter(_has_state, functions.values()):
            metric.to(device).reset()
            metric.sync_on_compute = ranks is not None
        with torch.no_grad():
            for index, each in enumerate(self.val_batches):
                if index % share.size != share.rank:
                    continue
                batch = on_device(each)
                examples = examples_in(batch)
                loss, output, target = self._loss_and_output(batch)
                total, count = total + loss.float() * examples, count + examples
                for name, function in functions.items():
                    if _has_state(function):
                        function.update(output, target)
                    else:
                        value = _one_number(name, function(output, target))
                        sums[name] = sums[name] + value * examples
            if ranks is not None:
                total, count, *summed = ranks.summed([total, count, *sums.values()], device)
                sums = dict(zip(sums, summed, strict=True))
            if count == 0:
                raise none_left("validation batches")
            means = {
                name: function.compute() if _has_state(function) else sums[name] / count
                for name, function in functions.items()
            }
            metrics = {name: float(_one_number(name, mean)) for name, mean in means.items()}
            return float(total / count), metrics

    def _loss_and_output(self, batch: Any) -> tuple[Tensor, Any, Any]:
        seen: list[tuple[Any, Any]] = []
        if self.loss_fn is not None:
            loss_fn = self.loss_fn

            def keep(output: Any, target: Any) -> Tensor:
                seen.append((output, target))
                return loss_fn(output, target)

            loss = batch_loss_of(self.model, keep)(batch)
        else:
            hook = self.model.register_forward_hook(lambda _, __, out: seen.append((out, batch)))
            try:
                loss = self.evaluation_loss(batch)
            finally:
                hook.remove()
        return loss.reshape(()), *(seen[-1] if seen else (None, batch))


SetupFactory: TypeAlias = Callable[..., Setup]
"""A function that ``setup`` may name. It is called with ``setup_args`` as keyword arguments, under
the task's seed, and draws initial weights from the global random states only. Every call returns an
equal :class:`Setup`: the same weights, and with the same data seed the same batches."""


def _function(metric: Metric) -> Any:
    return metric[0] if isinstance(metric, (tuple, list)) else metric


def _has_state(function: Any) -> bool:
    """Return whether a metric is of torchmetrics: it is accumulated, not averaged."""
    return all(hasattr(function, name) for name in ("update", "compute", "reset"))


def _direction(name: str, metric: Metric) -> Direction:
    function, direction = _function(metric), None
    if isinstance(metric, (tuple, list)):
        direction = metric[1] if len(metric) == 2 else None
    elif isinstance(getattr(function, "higher_is_better", None), bool):
        direction = "max" if function.higher_is_better else "min"
    require_kind(
        direction in ("max", "min") and callable(function) and not isinstance(function, type),
        f"metric {name!r}",
        metric,
        'give a pair of a function (output, target) and "max" or "min", or a torchmetrics.Metric '
        "that has higher_is_better",
    )
    return direction  # type: ignore[return-value]


def _one_number(name: str, value: Any) -> Any:
    numbers = value.numel() if isinstance(value, Tensor) else int(isinstance(value, (int, float)))
    require_kind(numbers == 1, f"metric {name!r}", value, "return one number")
    return value.reshape(()) if isinstance(value, Tensor) else value
