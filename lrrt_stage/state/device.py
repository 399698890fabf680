"""The device: choosing one, moving batches to it, and deterministic arithmetic on it."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from textwrap import shorten
from threading import RLock
from typing import Any

import torch

from lrrt_stage.errors import LRRTError, describe, first_line
from lrrt_stage.settings import require

__all__ = ["deterministic", "is_distributed", "resolve_device", "summed_over_ranks", "to_device"]

SETTINGS_LOCK = RLock()
"""Held by the thread whose block has changed torch's settings."""


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the named device; ``auto`` is cuda, then mps, then cpu.

    Raises
    ------
    LRRTError
        If torch does not know the name, there is no such device, or its tensors have no values
        (``meta``).
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # also an ImportError, for a backend that is not installed
        # The message of torch lists all devices there are.
        reason = shorten(first_line(error).partition(". ")[0], 100, placeholder="…")
        raise LRRTError(
            f"device {str(name)!r} is not available here ({reason}): use auto or cpu"
        ) from None
    require(
        device.type != "meta",
        f"device {str(name)!r} holds shapes without values, which cannot be trained: "
        "use auto or cpu",
    )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_distributed() -> bool:
    """Return whether this process is one of several ranks, which have to do the same."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def summed_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sums of the values of all ranks, which become those of the tensor."""
    if is_distributed():
        torch.distributed.all_reduce(values)
    return values


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms of torch inside the block; warn if an operation has none.

    Threads take turns: these settings, and the random states of torch, are those of the process.
    """
    with SETTINGS_LOCK:
        # cuBLAS reads this once, when it starts; it makes matrix products deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        enabled = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        memory: Any = torch.utils.deterministic
        fill = memory.fill_uninitialized_memory
        benchmark = torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling new memory costs time, and does not matter to code that writes before it reads.
        memory.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill
            torch.backends.cudnn.benchmark = benchmark


def to_device(batch: Any, device: torch.device, memory_format: torch.memory_format) -> Any:
    """Return ``batch`` with all tensors on ``device``, also those in it at any depth.

    Tuples, lists, mappings and dataclasses keep their type; only a mapping that cannot be changed
    becomes a dict. An object with a method ``to`` is copied and moved by it. Images (4 dimensions)
    get ``memory_format``; other tensors keep their own. Tensors that are on the device are copied,
    since a model may change its inputs in place, except for those that require a gradient. Where
    gradients are off, tensors are detached, since a tensor with a graph cannot be copied.

    Raises
    ------
    LRRTError
        If a method ``to`` fails, or an object of the batch's type cannot be made.
    """
    try:
        return _moved(batch, device, memory_format)
    except LRRTError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise LRRTError(
            f"a batch is {describe(batch)}, which cannot be made again on a device "
            f"({type(error).__name__}: {first_line(error)}): give it a method to(device), or give "
            "tuples, lists or dicts of tensors"
        ) from error


def _moved(batch: Any, device: torch.device, memory_format: torch.memory_format) -> Any:
    moved = partial(_moved, device=device, memory_format=memory_format)
    if isinstance(batch, torch.Tensor):
        image = batch.dim() == 4 and batch.layout == torch.strided
        layout = memory_format if image else torch.preserve_format
        copied = not batch.requires_grad
        tensor = batch.to(device, non_blocking=True, memory_format=layout, copy=copied)
        return tensor if tensor.is_leaf or torch.is_grad_enabled() else tensor.detach()
    if callable(getattr(type(batch), "to", None)):
        # Many such methods change the object itself, and some of them return nothing.
        result = copy.copy(batch)
        try:
            named = _needs_keyword(result.to)
            returned = result.to(device=device) if named else result.to(device)
        except Exception as error:
            raise LRRTError(
                f"a batch is {describe(batch)}, whose method to({str(device)!r}) raised "
                f"{type(error).__name__}: {first_line(error)}: correct the method, or give a batch "
                "of tensors"
            ) from error
        return result if returned is None else returned
    if isinstance(batch, tuple):
        return getattr(batch, "_make", type(batch))([moved(part) for part in batch])
    if isinstance(batch, list):
        result = copy.copy(batch)
        result[:] = map(moved, batch)
        return result
    if isinstance(batch, Mapping):
        result = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        for key, value in batch.items():
            result[key] = moved(value)
        return result
    if is_dataclass(type(batch)):
        result = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(result, field.name, moved(getattr(batch, field.name)))
        return result
    return batch


def _needs_keyword(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return True
    except ValueError:  # a function written in C may have no signature
        pass
    return False
