"""How many processes share a batch, and how they share the model.

Importing this imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lrrt_stage.settings import Options, require, setting

__all__ = ["RankOptions", "launched_rank", "launched_size"]

MAX_PROCESSES = 1_024
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` and other launchers set for every process that they start."""


@dataclass(frozen=True)
class RankOptions(Options):
    """How many processes share a batch, and how they share the model."""

    processes: int = setting(
        1,
        "Processes that share each batch: one per GPU, or on the cores of a CPU. batch_size is "
        "that of all of them. torchrun sets it as well.",
        minimum=1,
        maximum=MAX_PROCESSES,
    )
    strategy: str = setting(
        "ddp",
        "How several processes share the model: each has all of it (ddp), or a part (fsdp).",
        choices=("ddp", "fsdp"),
    )
    sync_batchnorm: bool = setting(
        False,
        "Batch norm over the whole batch, on GPUs; false: each process over its part of the batch.",
    )

    @property
    def changes_model(self) -> bool:
        """Whether the model of each process is another one than that of a process alone."""
        return self.processes > 1 and (self.strategy == "fsdp" or self.sync_batchnorm)

    def require_device(self, kind: str) -> None:
        """Raise LRRTError unless torch can do this on such a device."""
        require(
            kind in ("cpu", "cuda"),
            f"processes={self.processes} cannot share batches on {kind}: give device=cpu",
        )
        require(
            not self.sync_batchnorm or kind == "cuda",
            f"sync_batchnorm=true needs GPUs, and the device is {kind}: leave it out, and each "
            "process normalises over its part of the batch",
        )

    def require_divided(self, batch_size: int, name: str = "batch_size") -> None:
        """Raise LRRTError unless a batch of so many examples divides among the processes."""
        below = batch_size - batch_size % self.processes
        choice = " or ".join(str(n) for n in (below, below + self.processes) if n > 0)
        require(
            batch_size % self.processes == 0,
            f"{name}={batch_size} does not divide among {self.processes} processes: use {choice}",
        )


def launched_size() -> int:
    """Return how many ranks a launcher such as ``torchrun`` has started; 1 without one."""
    size = os.environ["WORLD_SIZE"] if all(name in os.environ for name in LAUNCHED) else ""
    return int(size) if size.isdecimal() else 1


def launched_rank() -> int:
    """Return which rank of a launcher this process is; 0 without one."""
    return int(os.environ["RANK"]) if launched_size() > 1 else 0
