"""The loss of one fixed batch at every iteration: a curve without sampling noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrrt_stage.errors import LRRTError
from lrrt_stage.measure.step import require_scalar
from lrrt_stage.measure.validation import examples_in
from lrrt_stage.settings import require
from lrrt_stage.state.preserve import preserved_modes

__all__ = ["Probe"]


class Probe:
    """Evaluates one batch that is not trained on, at the weights before every step.

    The training losses of a range test are of different examples at every iteration, and their
    noise misleads a rule. The probe has no such noise, and since it is not trained on, its loss
    rises as soon as the steps no longer help other examples.

    The model is in evaluation mode, without dropout, except that layers that normalise over the
    batch use the statistics of the batch. The running statistics lag some ten steps behind, which
    in a short ramp is a decade of learning rates.

    Parameters
    ----------
    model
        The model, on its device, in training mode. Its mode and buffers are restored.
    batch
        The batch, on the device; two examples or more if a layer normalises over the batch. The
        model gets a copy, which it may change in place.
    loss_of
        Function from a batch to its mean loss, a scalar.
    losses
        Modules that compute the loss. They are in evaluation mode as well, and restored.

    Raises
    ------
    LRRTError
        For a batch or a loss that cannot be used; the message begins with "the probe".
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        loss_of: Callable[[Any], Tensor],
        losses: Iterable[nn.Module] = (),
    ) -> None:
        self.model, self.batch, self.loss_of, self.losses = model, batch, loss_of, list(losses)
        # A frozen layer is in evaluation mode while the model trains, and stays as it is. A layer
        # without running statistics uses those of the batch anyway.
        self.norms = [
            layer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
        ]
        require(
            not self.norms or examples_in(batch) >= 2,
            "the probe has one example, and the model normalises over a batch: give two or more",
        )

    def __call__(self, iteration: int = 0) -> dict[str, Tensor]:
        """Return the loss as ``probe_loss``, a scalar on the device; alike at every iteration."""
        with torch.no_grad(), self._evaluation_mode():
            try:
                loss = require_scalar(self.loss_of(copy.deepcopy(self.batch)))
            except LRRTError as error:
                raise LRRTError(f"the probe: {error}") from None
        return {"probe_loss": loss.reshape(())}

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        statistics = [(layer, layer.running_mean, layer.running_var) for layer in self.norms]
        buffers = [(buffer, buffer.clone()) for loss in self.losses for buffer in loss.buffers()]
        with preserved_modes(part for loss in self.losses for part in loss.modules()):
            for layer in self.norms:
                layer.running_mean = layer.running_var = None
            for module in (self.model, *self.losses):
                module.eval()
            try:
                yield
            finally:
                self.model.train()
                for layer, mean, variance in statistics:
                    layer.running_mean, layer.running_var = mean, variance
                for buffer, values in buffers:
                    buffer.copy_(values)
