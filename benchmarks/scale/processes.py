"""A range test on one process, with one thread and with two, and on two processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch

from pipeline import PreparedTask, RangeTestPlan, Task
from pipeline.ranks.launch import ranks_of
from pipeline.ranks.options import RankOptions
from pipeline.task.tasks import Runtime

__all__ = ["lines"]

TASK = Task(dataset="photographs", model="resnet20", batch_size=64)
ROUNDS = 3
CASES = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 2),
}
"""Name -> processes, and threads of all of them."""


def lines() -> Iterator[str]:
    """Yield the median seconds of a range test, and how much faster it is than on one thread."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):  # interleaved, since a machine is not as fast all the time
        for name, (processes, threads) in CASES.items():
            seconds[name].append(_seconds(processes, threads))
    alone = median(seconds["one process, one thread"])
    for name, found in seconds.items():
        yield f"{name}: {median(found):.1f} s, {alone / median(found):.2f} times as fast"


def _seconds(processes: int, threads: int) -> float:
    torch.set_num_threads(threads)
    with ranks_of(RankOptions(processes=processes), (), "cpu"):
        prepared = PreparedTask(TASK, Runtime(device="cpu"))
        state = prepared.initial_weights()
        began = time.perf_counter()
        prepared.range_test(state, RangeTestPlan())
        return time.perf_counter() - began


if __name__ == "__main__":
    print(*lines(), sep="\n")
