"""The global random states: preserve them, and seed them for a block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_randomness", "seeded"]


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch (CPU, CUDA, MPS) at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed these random states for the block, and restore them at the end."""
    with preserved_randomness():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - code of users draws from it
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            # Without a device, torch.manual_seed() takes longer than a step of a small network: it
            # formats a traceback for every kind of device, in case that one is initialised later.
            torch.default_generator.manual_seed(seed)
        yield
