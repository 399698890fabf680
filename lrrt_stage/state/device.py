"""The device: choosing one, moving batches to it, and deterministic arithmetic on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from textwrap import shorten
from typing import Any

import torch

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import require

__all__ = ["deterministic", "resolve_device", "to_device"]


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


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms of torch inside the block; warn if an operation has none."""
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
    """Return ``batch`` with all tensors on ``device``, also those in tuples, lists and dicts.

    Images (4 dimensions) get ``memory_format``; other tensors keep their own.
    """
    moved = partial(to_device, device=device, memory_format=memory_format)
    if isinstance(batch, torch.Tensor):
        layout = memory_format if batch.dim() == 4 else torch.preserve_format
        return batch.to(device, non_blocking=True, memory_format=layout)
    if hasattr(batch, "items"):
        return type(batch)({key: moved(value) for key, value in batch.items()})
    if isinstance(batch, (tuple, list)):
        parts = map(moved, batch)
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
