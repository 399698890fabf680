"""The built-in optimizers. Each is one function in :data:`OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["OPTIMIZERS", "build_optimizer"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params, momentum, **rest: torch.optim.SGD(params, momentum=momentum, **rest),
    "adam": lambda params, momentum, **rest: torch.optim.Adam(
        params, betas=(momentum, 0.999), **rest
    ),
    "adamw": lambda params, momentum, **rest: torch.optim.AdamW(
        params, betas=(momentum, 0.999), **rest
    ),
}
"""Name -> function of parameters, ``momentum`` (Adam's β1), ``weight_decay``, ``lr``, ``fused``."""


def build_optimizer(
    name: str, params: Iterable[nn.Parameter], momentum: float, weight_decay: float
) -> Optimizer:
    """Return a new optimizer; the learning rate is set by whoever steps it."""
    params = list(params)
    rest: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "lr": 1e-3}
    # Fused kernels take a GradScaler's verdict on the device; others make the host wait for it.
    rest["fused"] = all(p.is_cuda and p.is_floating_point() for p in params) or None
    return OPTIMIZERS[name](params, **rest)
