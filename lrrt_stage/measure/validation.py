"""A validation loss at every iteration of a range test, cheap enough to be left on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require

__all__ = ["Validation", "Validator", "examples_in"]


@dataclass(frozen=True, eq=False, repr=False)
class Validation:
    """The data and the loss for the validation during a range test.

    Evaluating the whole validation set after every batch costs many times the test itself (33
    times in the article, Fig 8). A fixed sample of about one batch, without gradients and without
    waiting for the device, costs about a quarter of the test; a few evaluations of the whole set
    bound the error of the sample.

    Parameters
    ----------
    sample
        Batches that are evaluated at every iteration. They are kept on the device.
    full
        All validation batches; None to evaluate the sample only.
    full_evaluations
        Number of iterations at which ``full`` is evaluated, evenly spaced over the ramp.
    batch_loss
        Function from a batch, on the device, to its mean loss; None for the training loss. A
        penalty in the training loss makes the two losses incomparable, so leave it out here.
    """

    sample: Sequence[Any]
    full: Iterable[Any] | None = None
    full_evaluations: int = 5
    batch_loss: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        require(len(self.sample) > 0, "the validation sample has no batch: give at least one")
        require(
            self.full_evaluations >= 1,
            f"full_evaluations={self.full_evaluations} is below 1: use full=None for none",
        )

    def __repr__(self) -> str:
        full = f", full set at {self.full_evaluations} iterations" if self.full is not None else ""
        return f"Validation(sample of {len(self.sample)} batches{full})"


class Validator:
    """Evaluates a :class:`Validation` during a range test of ``iterations`` iterations."""

    def __init__(
        self,
        model: nn.Module,
        validation: Validation,
        batch_loss: Callable[[Any], Tensor],
        iterations: int,
        device: torch.device,
    ) -> None:
        self.model, self.batch_loss, self.full = model, batch_loss, validation.full
        self.sample = list(validation.sample)
        count = min(validation.full_evaluations, iterations)
        # In the middle of equal parts: nothing is learned at the start, and the loss has exploded
        # at the end.
        middles = (np.arange(count) + 0.5) * iterations / count
        self.full_at = set(middles.astype(int).tolist())
        self.not_evaluated = torch.full((), torch.nan, device=device)

    def __call__(self, iteration: int) -> dict[str, Tensor]:
        """Return the mean loss over the sample, and over the full set if there is one.

        Scalars on the device, by their names in an ``LRCurve``. The second is NaN at iterations
        where the full set is not evaluated.
        """
        losses = {"val_loss": self._mean_loss(self.sample)}
        if self.full is not None:
            evaluate = iteration in self.full_at
            full_loss = self._mean_loss(self.full) if evaluate else self.not_evaluated
            losses["full_val_loss"] = full_loss
        return losses

    def _mean_loss(self, batches: Iterable[Any]) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            weighted = [(self.batch_loss(batch).float(), examples_in(batch)) for batch in batches]
        self.model.train()
        total = sum(count for _, count in weighted)
        return torch.stack([loss.reshape(()) * (count / total) for loss, count in weighted]).sum()


def examples_in(batch: Any) -> int:
    """Return the number of examples in a batch: the length of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = list(batch.values()) if hasattr(batch, "values") else batch
    for value in values if isinstance(values, (list, tuple)) else ():
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise LRRTError(
        f"a validation batch is {type(batch).__name__}, without a tensor whose length is the "
        "number of examples: give tuples or mappings of tensors"
    )
