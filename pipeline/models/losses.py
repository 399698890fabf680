"""Losses by name: the classes of ``torch.nn``, or a factory of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lrrt_stage.errors import LRRTError, describe, first_line, unknown_name
from pipeline.data.factories import call_factory, is_factory

__all__ = ["build_loss", "require_loss"]

LOSSES = tuple(name for name in vars(nn) if name.endswith("Loss"))


def require_loss(name: str) -> None:
    """Raise LRRTError unless ``name`` has the form of a factory, or is a loss of ``torch.nn``."""
    if not is_factory(name) and name not in LOSSES:
        raise unknown_name("loss", name, [*LOSSES, "package.module:factory"])


def build_loss(name: str, arguments: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Return a function ``(output, target)`` to a scalar.

    ``name`` is a class of ``torch.nn`` such as ``HuberLoss``, or ``package.module:factory``.
    """
    if is_factory(name):
        made = call_factory("loss", name, arguments)
        if not callable(made):
            raise LRRTError(
                f"loss {name!r} returned {describe(made)}: return a function (output, target)"
            )
        return made
    require_loss(name)
    try:
        return getattr(nn, name)(**arguments)
    except TypeError as error:
        raise LRRTError(
            f"loss {name!r}: {first_line(error)}: check loss_args {dict(arguments)}"
        ) from None
