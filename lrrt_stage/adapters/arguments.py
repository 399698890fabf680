"""What every adapter returns, and how it draws batches without a side effect."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypedDict

from torch import nn
from torch.optim import Optimizer

from lrrt_stage.errors import describe
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.measure.step import BatchLoss
from lrrt_stage.settings import require
from lrrt_stage.state.preserve import preserved_sources
from lrrt_stage.state.randomness import seeded

__all__ = [
    "AdaptedLoader",
    "RangeTestArguments",
    "check_kind",
    "range_test_arguments",
    "warn_not_applied",
]


class RangeTestArguments(TypedDict):
    """Arguments of one call of :func:`lrrt_stage.range_test`, to which its options are added.

    Call the adapter again for a further test.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: None
    batches: Iterable[Any]
    batch_loss: BatchLoss
    step: StepOptions
    """As the framework's trainer takes a step. A keyword of ``range_test``, such as
    ``clip_norm=1.0``, has precedence."""
    probe: Any | None
    """The first batch of the validation data; None if there is none."""


class AdaptedLoader:
    """The loader of a framework. A subclass undoes what iterating it changes in the framework."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def range_test_arguments(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    batch_loss: BatchLoss,
    val_batches: Iterable[Any] | None,
    step: StepOptions | None = None,
) -> RangeTestArguments:
    """Return the arguments; drawing the probe changes no random state."""
    probe = None
    if val_batches is not None:
        with preserved_sources(val_batches), seeded(0):
            probe = next(iter(val_batches), None)
    return {
        "model": model,
        "optimizer": optimizer,
        "loss_fn": None,
        "batches": batches,
        "batch_loss": batch_loss,
        "step": step or StepOptions(),
        "probe": probe,
    }


def check_kind(given: Any, kind: str, *packages: str) -> str:
    """Return which of ``packages`` has the class ``kind`` of an object; raise LRRTError if none."""
    named = [base.__module__ for base in type(given).__mro__ if base.__name__ == kind]
    found = [name for name in packages if any(base.startswith(f"{name}.") for base in named)]
    require(
        bool(found),
        f"{describe(given)} was given, which is no {kind}: pass the {kind} itself, not its class "
        "or model",
    )
    return found[0]


def warn_not_applied(names: Iterable[str]) -> None:
    """Warn the caller of the adapter of what has no effect in the range test, if anything."""
    if listed := ", ".join(names):
        warnings.warn(
            f"not applied in the range test: {listed}; of a step, range_test has the options "
            f"{', '.join(field.name for field in fields(StepOptions))}",
            stacklevel=3,
        )
