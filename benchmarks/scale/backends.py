"""A study's tests with one worker and with two, by what runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.jobs.jobs import RangeTestJob
from pipeline.jobs.pool import run_jobs

__all__ = ["lines"]

TASK = Task(dataset="photographs", model="resnet20", batch_size=16)
RUNTIME = Runtime(device="cpu")
TESTS, ROUNDS = 8, 3
CASES = [(None, 1), (None, 2), ("ray", 1), ("ray", 2)]


def lines() -> Iterator[str]:
    """Yield the median seconds of all tests, and how much faster two workers are than one."""
    torch.set_num_threads(1)
    prepared = PreparedTask(TASK, RUNTIME)
    jobs = [
        RangeTestJob(f"seed {seed}", replace(TASK, seed=seed), RangeTestPlan())
        for seed in range(TESTS)
    ]
    seconds: dict[tuple[str | None, int], list[float]] = {case: [] for case in CASES}
    for _ in range(ROUNDS):  # interleaved, since a machine is not as fast all the time
        for backend, workers in CASES:
            began = time.perf_counter()
            run_jobs(jobs, RUNTIME, workers, prepared=prepared, backend=backend)
            seconds[backend, workers].append(time.perf_counter() - began)
    for backend in (None, "ray"):
        one, two = (median(seconds[backend, workers]) for workers in (1, 2))
        name = backend or "processes of joblib"
        yield f"{name}: {one:.1f} s, {two:.1f} s with two workers, {one / two:.2f} times as fast"


if __name__ == "__main__":
    print(*lines(), sep="\n")
