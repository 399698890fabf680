"""Plain attributes, such as counters and the states of metrics: taken, and put back."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["preserve_attributes"]

NUMBERS = (bool, int, float, complex, np.generic)
VALUES = (*NUMBERS, str, bytes, type(None), tuple, frozenset, torch.device, torch.dtype)
CONTAINERS = (list, dict, OrderedDict, defaultdict, set, deque)
"""Not their subclasses, which may refuse to be emptied."""
MAX_ELEMENTS = 2**20
"""Larger arrays are data, not states."""
WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "torch.jit.", "torch._dynamo.")
"""Of modules that keep what belongs to a process or a compiler, not to the model."""
OF_MODULES = {name for name in vars(nn.Module()) if "hook" not in name}
"""Attributes that every module has, put back otherwise."""


def preserve_attributes(
    owners: Iterable[Any], but: Collection[str] = OF_MODULES
) -> Callable[[], None]:
    """Return a function that puts back the plain attributes that modules, or others, have now.

    Those are numbers, strings and tuples; lists, dicts, sets and deques with their entries; hooks;
    and dense tensors and arrays of up to a million elements. Entries of entries are not: a list in
    a dict keeps what was appended to it. Attributes of these types that are new are removed.
    Those named in ``but`` are left alone.
    """
    found = [(owner, _plain(owner, but), set(vars(owner))) for owner in owners]
    values = {id(value): value for _, plain, _ in found for value in plain.values()}
    contents = [content for value in values.values() if (content := _content(value)) is not None]

    def restore() -> None:
        for owner, plain, names in found:
            for name in _plain(owner, but).keys() - names:
                del vars(owner)[name]
            vars(owner).update(plain)
        for put_back in contents:
            put_back()

    return restore


def _plain(owner: Any, but: Collection[str]) -> dict[str, Any]:
    if f"{type(owner).__module__}.".startswith(WRAPPERS):
        return {}
    return {
        name: value
        for name, value in vars(owner).items()
        if name not in but
        and (isinstance(value, (*VALUES, Tensor, np.ndarray)) or type(value) in CONTAINERS)
    }


def _content(value: Any) -> Callable[[], None] | None:
    """Return a function that gives a value, which may change in place, its content back."""
    if type(value) in CONTAINERS:
        return _entries(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and value.size <= MAX_ELEMENTS and value.flags.writeable:
        array = value.copy()
        return lambda: np.copyto(value, array)
    return None


def _entries(container: Any) -> Callable[[], None]:
    entries = copy.copy(container)

    def restore() -> None:
        container.clear()
        fill = container.extend if isinstance(container, (list, deque)) else container.update
        fill(entries)

    return restore


def _tensor(tensor: Tensor) -> Callable[[], None] | None:
    dense = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta)
    if not dense or tensor.numel() > MAX_ELEMENTS or tensor.is_inference():
        return None
    memory, values = tensor.data, tensor.detach().clone()
    requires_grad, gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None

    def restore() -> None:
        with torch.no_grad():
            # A move to another device has replaced the memory.
            tensor.data = memory
            # What did not change is not written: it may be expanded, or shared.
            if not torch.allclose(tensor, values, rtol=0, atol=0, equal_nan=True):
                tensor.copy_(values)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = gradient

    return restore
