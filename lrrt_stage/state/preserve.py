"""Leave a model, its optimizer, and the sources of randomness exactly as they were found."""

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

from lrrt_stage.state.attributes import preserved_attributes, preserved_tensors
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["generators", "preserved", "preserved_modes", "preserved_sources"]

MAX_DEPTH = 10
"""Steps from the batches to a generator: from the tuple of batches and validation to
``wrapper.loader.dataset.dataset.dataset.transform.transforms[0].generator`` there are ten."""
MAX_ENTRIES = 64
"""Longer lists hold examples, not parts of a loader."""
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
WITHOUT_PARTS = (
    *(type, ModuleType, FunctionType, Tensor, np.ndarray, _BaseDataLoaderIter),
    *GENERATORS,
)


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Any,
    device: torch.device,
    losses: Iterable[nn.Module] = (),
) -> Iterator[None]:
    """Restore everything when the block ends, also after an exception.

    Of every submodule of ``model`` and of ``losses``: parameters (values, device, layout,
    gradients, ``requires_grad``), buffers, the train/eval mode, and plain attributes (see
    :func:`lrrt_stage.state.attributes.preserved_attributes`). Of the optimizer: its state and
    options. Of the batches: what :func:`preserved_sources` restores.

    Inside the block, the optimizer works on a copy of its state on ``device``, and a
    ``DataLoader`` starts worker processes of its own. Persistent ones that already run are set
    aside, with their random states and the batches that they have read ahead, and continue
    afterwards.
    """
    modules = _unique(part for module in (model, *losses) for part in module.modules())
    owned = [tensor for module in modules for tensor in module.parameters(recurse=False)]
    # The optimizer may hold parameters outside the model, such as those of a loss function.
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = _unique([*owned, *optimized])
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    loaders = [part for part in _parts(batches) if isinstance(part, DataLoader)]
    with (
        preserved_sources(batches),
        _preserved_optimizer(optimizer, device),
        preserved_tensors(_unique([*parameters, *buffers])),
        preserved_attributes(modules),
        preserved_modes(modules),
        ExitStack() as stack,
    ):
        for parameter in parameters:
            parameter.grad = None
        for loader in loaders:
            stack.callback(setattr, loader, "_iterator", loader._iterator)
            loader._iterator = None
        yield


@contextmanager
def preserved_sources(batches: Any) -> Iterator[None]:
    """Restore everything that decides which batches are drawn next.

    These are the global random states of Python, NumPy and torch; the random generators among the
    parts of ``batches``; and the plain attributes of its loaders and samplers, such as a count of
    epochs. Parts are attributes and entries up to ten steps away: the loader in a wrapper, its
    samplers, datasets and transforms. The closure of a function is not searched.
    """
    parts = list(_parts(batches))
    loaders = [part for part in parts if isinstance(part, DataLoader)]
    # The sampler of a loader may be of any class.
    samplers = [sampler for loader in loaders for sampler in (loader.sampler, loader.batch_sampler)]
    samplers += [part for part in parts if isinstance(part, Sampler)]
    owners = [part for part in _unique([*loaders, *samplers]) if hasattr(part, "__dict__")]
    with (
        preserved_randomness(),
        # Persistent worker processes that start inside the block are kept.
        preserved_attributes(owners, skip={"_iterator"}),
        ExitStack() as stack,
    ):
        for part in parts:
            if isinstance(part, GENERATORS):
                stack.callback(_saved(part))
        yield


def generators(batches: Any) -> list[torch.Generator]:
    """Return the torch generators among the parts of ``batches``, each once, in a fixed order."""
    return [part for part in _parts(batches) if isinstance(part, torch.Generator)]


@contextmanager
def preserved_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore whether each of ``modules`` is in training or evaluation mode at the end."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _preserved_optimizer(optimizer: Optimizer, device: torch.device) -> Iterator[None]:
    state, groups = optimizer.state, [dict(group) for group in optimizer.param_groups]
    options = [value for group in groups for value in group.values()]
    optimizer.state = defaultdict(
        dict,
        {
            parameter: {name: _copied(value, device) for name, value in entries.items()}
            for parameter, entries in state.items()
        },
    )
    # A learning rate may be a tensor that is changed in place.
    with preserved_tensors(value for value in options if isinstance(value, Tensor)):
        try:
            yield
        finally:
            optimizer.state = state
            for group, saved in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(saved)


def _copied(value: Any, device: torch.device) -> Any:
    # A counter (0-dimensional) stays on the CPU if the optimizer keeps it there.
    if isinstance(value, Tensor) and value.dim():
        return value.to(device, copy=True)
    return copy.deepcopy(value)


def _unique(values: Iterable[Any]) -> list[Any]:
    """Return every object once, in order."""
    return list({id(value): value for value in values}.values())


def _parts(whole: Any) -> Iterator[Any]:
    """Yield ``whole``, its attributes and entries, theirs, and so on; each object once."""
    seen: dict[int, Any] = {}
    level = [whole]
    for _ in range(MAX_DEPTH + 1):
        level = [part for part in _unique(level) if id(part) not in seen]
        # The objects are kept, so that no other object gets the same id meanwhile.
        seen.update((id(part), part) for part in level)
        yield from level
        level = [entry for part in level for entry in _entries(part)]


def _entries(part: Any) -> list[Any]:
    if isinstance(part, WITHOUT_PARTS):
        return []
    if isinstance(part, (list, tuple, dict)):
        entries = part.values() if isinstance(part, dict) else part
        return list(entries) if len(part) <= MAX_ENTRIES else []
    attributes = getattr(part, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, dict) else []


def _saved(generator: Any) -> Callable[[], object]:
    """Return a function that restores the present state of a random generator."""
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    return partial(generator.set_state, generator.get_state())
