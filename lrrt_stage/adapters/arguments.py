"""What every adapter returns, and how it takes batches without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

from torch import nn
from torch.optim import Optimizer

from lrrt_stage.measure.step import BatchLoss
from lrrt_stage.settings import require
from lrrt_stage.state.preserve import preserved_sources
from lrrt_stage.state.randomness import seeded

__all__ = ["Batches", "RangeTestArguments", "first_batch", "require_methods"]


class RangeTestArguments(TypedDict):
    """Arguments of one call of :func:`lrrt_stage.range_test`; its options are added as usual.

    Batches are drawn anew by every adapter, so make the arguments again for another test.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: None
    batches: Iterable[Any]
    batch_loss: BatchLoss
    probe: Any | None
    """The first batch of the validation data; None where there is none."""


class Batches:
    """A framework's loader; what iterating changes in the framework, a subclass puts back."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def first_batch(batches: Iterable[Any]) -> Any | None:
    """Return the first batch, always the same one, or None; all random states are left alone."""
    with preserved_sources(batches), seeded(0):
        return next(iter(batches), None)


def require_methods(whole: Any, kind: str, names: Iterable[str]) -> None:
    """Raise LRRTError unless ``whole`` has the attributes that make it a ``kind``."""
    missing = [name for name in names if not hasattr(type(whole), name)]
    a_class = isinstance(whole, type)
    given = f"the class {whole.__name__}" if a_class else f"a {type(whole).__name__}"
    require(
        not missing and not a_class,
        f"{given} was given, which is no {kind}: pass the {kind} itself, not its class or model",
    )
