"""The loss of one fixed batch at every iteration: a curve without sampling noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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
        The model, on its device. It is left in training mode, its buffers unchanged.
    batch
        The batch, on the device; of two examples or more where a layer normalises over them.
    loss_of
        From a batch to its mean loss, a scalar.
    """

    def __init__(self, model: nn.Module, batch: Any, loss_of: Callable[[Any], Tensor]) -> None:
        self.model, self.batch, self.loss_of = model, batch, loss_of
        self.norms = [
            layer
            for layer in model.modules()
            if isinstance(layer, _NormBase) and layer.running_mean is not None
        ]

    def __call__(self) -> Tensor:
        """Return the loss, a scalar on the device."""
        self.model.eval()
        with torch.no_grad(), self._own_statistics():
            loss = self.loss_of(self.batch)
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
