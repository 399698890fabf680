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


@dataclass(frozen=True)
class Validation:
    """What a range test is validated on.

    Validating on everything after every batch costs many times the test itself (33 times in the
    article, Fig 8). A fixed sample of about one batch, without gradients and without waiting for
    the device, costs about a quarter of it; a few looks at everything bound the sample's error.

    Parameters
    ----------
    sample
        Batches that are evaluated at every iteration, always the same ones. They are kept on the
        device.
    full
        All validation batches, or None for no look at them.
    full_looks
        Iterations at which ``full`` is evaluated, evenly spaced over the ramp.
    batch_loss
        From a batch, on the device, to its mean loss; None for that of the training, which is
        what a regularised training loss is not comparable with.
    """

    sample: Sequence[Any]
    full: Iterable[Any] | None = None
    full_looks: int = 5
    batch_loss: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        require(len(self.sample) > 0, "the validation sample has no batch: give at least one")
        require(self.full_looks >= 1, f"full_looks={self.full_looks} is below 1: give no full set")


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
        count = min(validation.full_looks, iterations)
        # In the middle of equal parts: at the very start nothing is learnt, at the end all is lost.
        looks = (np.arange(count) + 0.5) * iterations / count
        self.looks = set(looks.astype(int).tolist()) if self.full is not None else set()
        self.unknown = torch.full((), torch.nan, device=device)

    def __call__(self, iteration: int) -> dict[str, Tensor]:
        """Return the mean loss over the sample, and over everything where there is a full set.

        Scalars on the device, by their names in an ``LRCurve``. The second is NaN at iterations
        without a look.
        """
        losses = {"val_loss": self._mean(self.sample)}
        if self.full is not None:
            look = iteration in self.looks
            losses["full_val_loss"] = self._mean(self.full) if look else self.unknown
        return losses

    def _mean(self, batches: Iterable[Any]) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            weighted = [(self.batch_loss(batch).float(), examples_in(batch)) for batch in batches]
        self.model.train()
        if len(weighted) == 1:
            return weighted[0][0].reshape(())
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
