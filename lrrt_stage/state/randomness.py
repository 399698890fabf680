"""The global random states: save, restore, and seed for the length of a block."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_randomness", "seeded"]


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put the Python, NumPy and torch (CPU, CUDA, MPS) random states back at the end."""
    restore = _snapshot()
    try:
        yield
    finally:
        restore()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all of them for the block, which then neither reads nor changes the global state."""
    with preserved_randomness():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - other people's code draws from it
        torch.manual_seed(seed)
        yield


def _snapshot() -> Callable[[], None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore
