"""Leave a model, its optimizer and the sources of randomness exactly as they were found."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lrrt_stage.state.attributes import preserve_attributes
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["preserved", "preserved_sources"]


MAX_DEPTH = 10
"""Attributes and entries down to a generator: from the pair of batches and validation to
``wrapper.loader.dataset.dataset.dataset.transform.transforms[0].generator`` there are ten."""
MAX_ENTRIES = 64
"""Longer lists hold examples, not parts of a loader."""


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Any,
    device: torch.device,
    losses: Iterable[nn.Module] = (),
) -> Iterator[None]:
    """Put everything back when the block ends, by whichever way it ends.

    That is: parameters (values, device, layout, gradients, ``requires_grad``), buffers, the
    train/eval mode and plain attributes (see :func:`preserve_attributes`) of every submodule, of
    ``model`` and of ``losses``; the optimizer's state and options; the Python, NumPy and torch
    random states; and the random generators that are found as attributes, up to ten steps away, of
    ``batches``: of a wrapper, its loader, samplers, datasets and transforms; and the plain
    attributes of loaders and samplers among them, such as a count of epochs. What a function holds
    in its closure is not seen.

    Inside the block the optimizer works on a copy of its state, on ``device``, and a
    ``DataLoader`` starts processes of its own: persistent ones that run already are set aside,
    with their random states and what they have read ahead, and go on afterwards.
    """
    modules = [model, *losses]
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    # The optimizer may hold parameters outside the model, of the loss for example.
    parameters = _once([*(p for module in modules for p in module.parameters()), *owned])
    buffers = _once([buffer for module in modules for buffer in module.buffers()])
    parts = list(_parts(batches))
    submodules = _once([part for module in modules for part in module.modules()])
    restores = [
        _modules(submodules),
        preserve_attributes(submodules),
        _tensors(_once([*parameters, *buffers])),
        _optimizer(optimizer),
        *_sources(parts),
        *(_processes(part) for part in parts if isinstance(part, DataLoader)),
    ]
    with preserved_randomness(), ExitStack() as stack:
        for restore in reversed(restores):
            stack.callback(restore)
        for parameter in parameters:
            parameter.grad = None
        optimizer.state = _copied_state(optimizer, device)
        yield


@contextmanager
def preserved_sources(batches: Any) -> Iterator[None]:
    """Put the global random states and what ``batches`` draws by back at the end.

    That is found as :func:`preserved` finds it.
    """
    with preserved_randomness(), ExitStack() as stack:
        for restore in _sources(list(_parts(batches))):
            stack.callback(restore)
        yield


def _once(values: list[Any]) -> list[Any]:
    """Return every object once, in their order."""
    return list({id(value): value for value in values}.values())


def _modules(modules: list[nn.Module]) -> Callable[[], None]:
    modes = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]

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


GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
NO_PARTS = (type, ModuleType, FunctionType, Tensor, np.ndarray, _BaseDataLoaderIter)


def _parts(whole: Any) -> Iterator[Any]:
    """Yield ``whole``, its attributes and entries, theirs, and so on; each object once."""
    seen: dict[int, Any] = {}
    level = [whole]
    for _ in range(MAX_DEPTH + 1):
        level = [part for part in _once(level) if id(part) not in seen]
        # Held here, so that no other object gets the same id meanwhile.
        seen.update((id(part), part) for part in level)
        yield from level
        level = [below for part in level for below in _below(part)]


def _below(part: Any) -> list[Any]:
    if isinstance(part, (*NO_PARTS, *GENERATORS)):
        return []
    if isinstance(part, (list, tuple, dict)):
        entries = part.values() if isinstance(part, dict) else part
        return list(entries) if len(part) <= MAX_ENTRIES else []
    attributes = getattr(part, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, dict) else []


def _sources(parts: list[Any]) -> list[Callable[[], object]]:
    """Return functions that put back what decides over the next batches."""
    loaders = [part for part in parts if isinstance(part, DataLoader)]
    # Any class of one's own can be a loader's sampler.
    samplers = [sampler for each in loaders for sampler in (each.sampler, each.batch_sampler)]
    samplers += [part for part in parts if isinstance(part, Sampler)]
    counting = [part for part in _once([*loaders, *samplers]) if hasattr(part, "__dict__")]
    generators = [_generator(part) for part in parts if isinstance(part, GENERATORS)]
    # A loader's processes are no state of it: those that start meanwhile go on.
    return [preserve_attributes(counting, but=("_iterator",)), *generators]


def _generator(generator: Any) -> Callable[[], object]:
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    bits = generator.bit_generator
    return partial(setattr, bits, "state", copy.deepcopy(bits.state))


def _processes(loader: DataLoader) -> Callable[[], None]:
    """Set the persistent processes of ``loader`` aside."""
    running, loader._iterator = loader._iterator, None

    def restore() -> None:
        loader._iterator = running

    return restore
