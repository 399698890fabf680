"""Leave a model, its optimizer and the sources of randomness exactly as they were found."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.randomness import preserved_randomness

__all__ = ["preserved"]


@contextmanager
def preserved(
    model: nn.Module, optimizer: Optimizer, batches: Any, device: torch.device
) -> Iterator[None]:
    """Put everything back when the block ends, by whichever way it ends.

    That is: parameters (values, device, layout, gradients, ``requires_grad``), buffers, the
    train/eval mode of every submodule, the optimizer's state and options, the Python, NumPy and
    torch random states, and the generators of ``batches``, its samplers and its dataset. Inside
    the block the optimizer works on a copy of its state, on ``device``.
    """
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    # The optimizer may hold parameters outside the model, of the loss for example.
    parameters = list({id(p): p for p in [*model.parameters(), *owned]}.values())
    restores = [
        _modules(model),
        _tensors([*parameters, *model.buffers()]),
        _optimizer(optimizer),
        *(_generator(each) for each in _generators(batches)),
    ]
    with preserved_randomness(), ExitStack() as stack:
        for restore in reversed(restores):
            stack.callback(restore)
        for parameter in parameters:
            parameter.grad = None
        optimizer.state = _copied_state(optimizer, device)
        yield


def _modules(model: nn.Module) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]

    def restore() -> None:
        for module, entries in buffers:
            module._buffers.clear()
            module._buffers.update(entries)
        for module, training in modes:
            module.training = training

    return restore


def _tensors(tensors: list[Tensor]) -> Callable[[], None]:
    saved = [
        # The memory that a tensor points to is replaced by a move or a new layout.
        (tensor, tensor.data, tensor.detach().clone(), tensor.requires_grad, tensor.grad)
        for tensor in tensors
    ]

    def restore() -> None:
        with torch.no_grad():
            for tensor, memory, values, requires_grad, gradient in saved:
                tensor.data = memory
                # What did not change is not written: it may be expanded, or shared.
                if not torch.equal(tensor, values):
                    tensor.copy_(values)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
                tensor.grad = gradient

    return restore


def _optimizer(optimizer: Optimizer) -> Callable[[], None]:
    state = optimizer.state
    groups = [dict(group) for group in optimizer.param_groups]
    # A learning rate may be a tensor that is changed in place.
    tensors = [
        (value, value.clone())
        for group in groups
        for value in group.values()
        if isinstance(value, Tensor)
    ]

    def restore() -> None:
        optimizer.state = state
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(saved)
        for tensor, value in tensors:
            tensor.copy_(value)

    return restore


def _copied_state(optimizer: Optimizer, device: torch.device) -> defaultdict[Tensor, Any]:
    """Return a copy of the state under the very same parameters as keys, on ``device``.

    Counters that an optimizer keeps on the CPU (0-dimensional) stay there.
    """
    return defaultdict(
        dict,
        {
            parameter: {
                key: value.to(device, copy=True)
                if isinstance(value, Tensor) and value.dim()
                else copy.deepcopy(value)
                for key, value in entries.items()
            }
            for parameter, entries in optimizer.state.items()
        },
    )


def _generators(batches: Any) -> list[Any]:
    """Return the generators that a loader, its samplers and its dataset draw from, each once."""
    sampler = getattr(batches, "batch_sampler", None)
    owners = [
        batches,
        getattr(batches, "sampler", None),
        sampler,
        getattr(sampler, "sampler", None),
        getattr(batches, "dataset", None),
    ]
    found: dict[int, Any] = {}
    for owner in owners:
        for value in list(getattr(owner, "__dict__", {}).values()):
            if isinstance(value, (torch.Generator, np.random.Generator, random.Random)):
                found[id(value)] = value
    return list(found.values())


def _generator(generator: Any) -> Callable[[], object]:
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    bits = generator.bit_generator
    return partial(setattr, bits, "state", copy.deepcopy(bits.state))
