"""Optimizers by name: the classes of ``torch.optim``, or a factory of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lrrt_stage.errors import excerpt
from lrrt_stage.measure.step import require_optimizer
from lrrt_stage.settings import require
from pipeline.data.factories import call, call_factory
from pipeline.data.names import is_factory

__all__ = ["OPTIMIZERS", "build_optimizer"]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
"""Name in lower case -> the optimizers of ``torch.optim``."""
FUSED_PRECISION = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def build_optimizer(
    name: str,
    params: Iterable[nn.Parameter],
    momentum: float,
    weight_decay: float,
    arguments: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> Optimizer:
    """Return a new optimizer; the learning rate is set by whoever steps it.

    ``momentum`` is the optimizer's parameter of this name, or the first of its ``betas``, and
    ``weight_decay`` the one of this name; an optimizer that does not have them goes without.
    ``arguments`` are further keyword arguments, and replace both. A factory,
    ``package.module:factory``, gets the parameters and these arguments only.
    ``device`` is where it will run.
    """
    params, arguments = list(params), dict(arguments or {})
    require(
        "lr" not in arguments,
        f"optimizer_args {excerpt(arguments)} sets lr, which the range test and the schedule set: "
        "leave it out",
    )
    if is_factory(name):
        made = call_factory("optimizer", name, arguments, params)
        require_optimizer(made)
        return made
    kind = OPTIMIZERS[name.lower()]
    declared = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": 1e-3}
    if "momentum" in declared:
        options["momentum"] = momentum
    elif "betas" in declared:
        options["betas"] = (momentum, *declared["betas"].default[1:])
    if "weight_decay" in declared:
        options["weight_decay"] = weight_decay
    chosen = {"foreach", "differentiable"} & arguments.keys()
    if "fused" in declared and device is not None and device.type == "cuda" and not chosen:
        # Fused kernels take a GradScaler's verdict on the device; others make the host wait.
        options["fused"] = all(p.dtype in FUSED_PRECISION for p in params) or None
    return call("optimizer", name, kind, options | arguments, params)
