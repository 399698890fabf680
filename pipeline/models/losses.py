"""Losses by name: the classes of ``torch.nn``, or a factory of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lrrt_stage.errors import LRRTError, describe, first_line
from pipeline.data.factories import call_factory, is_factory, require_name

__all__ = ["LOSSES", "build_loss"]

LOSSES = tuple(name for name in vars(nn) if name.endswith("Loss"))

"""Names of the losses of ``torch.nn``."""


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
    require_name("loss", name, LOSSES)
    try:
        return getattr(nn, name)(**arguments)
    except TypeError as error:
        raise LRRTError(
            f"loss {name!r}: {first_line(error)}: check loss_args {dict(arguments)}"
        ) from None
