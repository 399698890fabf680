"""Losses by name: the classes of ``torch.nn``, or a factory of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lrrt_stage.errors import describe
from lrrt_stage.settings import require
from pipeline.data.factories import call, call_factory, is_factory

__all__ = ["LOSSES", "build_loss"]

LOSSES = tuple(name for name in vars(nn) if name.endswith("Loss"))
"""Names of the losses of ``torch.nn``."""


def build_loss(name: str, arguments: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Return a function ``(output, target)`` to a scalar.

    ``name`` is a class of ``torch.nn`` such as ``HuberLoss``, or ``package.module:factory``.
    """
    if not is_factory(name):
        return call("loss", name, getattr(nn, name), arguments)
    made = call_factory("loss", name, arguments)
    require(
        callable(made),
        f"loss {name!r} returned {describe(made)}: return a function (output, target)",
    )
    return made
