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

__all__ = ["Probe"]


class Probe:
    """Evaluates one batch that is not trained on, at the weights before every step.

    The training losses of a range test are of other examples at every iteration, and their noise
    is what misleads a rule. The same examples every time have none, and examples that are not
    trained on rise as soon as the steps no longer help others.

    The model is in evaluation mode, so dropout is off, but for one thing: layers that normalise
    over the batch do so with the batch's own statistics. The running ones lag some ten steps
    behind, which in a short ramp is a decade of learning rates.

    Parameters
    ----------
    model
        The model, on its device, in training mode. It is left in it, its buffers unchanged.
    batch
        The batch, on the device; of two examples or more where a layer normalises over them. What
        the model does to it in place is undone.
    loss_of
        From a batch to its mean loss, a scalar.
    losses
        Modules that the loss is computed by, in evaluation mode meanwhile.

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
        # A frozen layer is in evaluation mode while the model trains, and stays as it is.
        self.norms = [
            layer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
        ]
        require(
            not self.norms or examples_in(batch) >= 2,
            "the probe has one example, and the model normalises over a batch: give two or more",
        )

    def __call__(self) -> Tensor:
        """Return the loss, a scalar on the device."""
        with torch.no_grad(), self._own_statistics(), _evaluating(self.losses):
            self.model.eval()
            try:
                loss = require_scalar(self.loss_of(copy.deepcopy(self.batch)))
            except LRRTError as error:
                raise LRRTError(f"the probe: {error}") from None
            finally:
                self.model.train()
        return loss.reshape(())

    @contextmanager
    def _own_statistics(self) -> Iterator[None]:
        # A layer without running statistics takes the batch's, in evaluation mode too.
        kept = [(layer.running_mean, layer.running_var) for layer in self.norms]
        for layer in self.norms:
            layer.running_mean = layer.running_var = None
        try:
            yield
        finally:
            for layer, (mean, var) in zip(self.norms, kept, strict=True):
                layer.running_mean, layer.running_var = mean, var


@contextmanager
def _evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode, and their modes and buffers back."""
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    buffers = [(b, b.clone()) for module in modules for b in module.buffers()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        for buffer, kept in buffers:
            buffer.copy_(kept)
