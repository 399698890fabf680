"""Restore tensors and plain attributes, such as counters and the states of metrics."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["preserved_attributes", "preserved_tensors"]

NUMBERS = (bool, int, float, complex, np.generic)
VALUES = (*NUMBERS, str, bytes, type(None), tuple, frozenset, torch.device, torch.dtype)
CONTAINERS = (list, dict, OrderedDict, defaultdict, set, deque)
"""Not their subclasses, which may refuse to be emptied."""
MAX_ELEMENTS = 2**20
"""Larger arrays are data, not states."""
WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "torch.jit.", "torch._dynamo.")
"""Packages of modules whose attributes belong to a process or a compiler, not to the model."""


@contextmanager
def preserved_tensors(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values, the memory, the gradient and ``requires_grad`` of tensors at the end."""
    saved = [
        (t, t.data, t.detach().clone(), t.requires_grad, t.grad if t.is_leaf else None)
        for t in tensors
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, memory, values, requires_grad, gradient in saved:
                # A move to a different device or layout has replaced the memory.
                tensor.data = memory
                # An unchanged tensor is not written to, since it may be expanded or shared.
                if not torch.allclose(tensor, values, rtol=0, atol=0, equal_nan=True):
                    tensor.copy_(values)
                if tensor.is_leaf:
                    tensor.requires_grad_(requires_grad)
                    tensor.grad = gradient


@contextmanager
def preserved_attributes(owners: Iterable[Any], skip: Collection[str] = ()) -> Iterator[None]:
    """Restore the plain attributes of modules and other objects at the end.

    Plain attributes are numbers, strings and tuples; lists, dicts, sets and deques, with their
    entries; and dense tensors and arrays of up to a million elements. So the submodules, buffers
    and hooks of a module are restored too. Entries of entries are not: a list in a dict keeps what
    was appended to it. New attributes of these types are removed. Those named in ``skip`` are left
    alone.
    """
    saved = [(owner, _plain(owner, skip), set(vars(owner))) for owner in owners]
    values = list({id(v): v for _, plain, _ in saved for v in plain.values()}.values())
    contents = [(value, copy.copy(value)) for value in values if _changes_in_place(value)]
    with preserved_tensors(value for value in values if _can_be_copied(value)):
        try:
            yield
        finally:
            for owner, plain, names in saved:
                for name in _plain(owner, skip).keys() - names:
                    del vars(owner)[name]
                vars(owner).update(plain)
            for value, content in contents:
                _refill(value, content)


def _plain(owner: Any, skip: Collection[str]) -> dict[str, Any]:
    if f"{type(owner).__module__}.".startswith(WRAPPERS):
        return {}
    return {
        name: value
        for name, value in vars(owner).items()
        if name not in skip
        and (isinstance(value, (*VALUES, Tensor, np.ndarray)) or type(value) in CONTAINERS)
    }


def _changes_in_place(value: Any) -> bool:
    """Return whether a value is a container, or an array that may change in place."""
    if isinstance(value, np.ndarray):
        return value.size <= MAX_ELEMENTS and value.flags.writeable
    return type(value) in CONTAINERS


def _can_be_copied(value: Any) -> bool:
    """Return whether a value is a tensor that can be copied and written to, and is not large."""
    if not isinstance(value, Tensor) or value.numel() > MAX_ELEMENTS or value.is_inference():
        return False
    return value.layout is torch.strided and not (value.is_nested or value.is_meta)


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, np.ndarray):
        np.copyto(value, content)
        return
    value.clear()
    fill = value.extend if isinstance(value, (list, deque)) else value.update
    fill(content)
