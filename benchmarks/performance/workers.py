"""What the workers of a study gain, and what a validation loss at every iteration costs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.performance.rounds import Settings, Timing, interleaved
from benchmarks.performance.rows import Row, compared
from lrrt_stage import RangeTestOptions
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task, ValidationOptions
from pipeline.jobs.jobs import FailedJob, RangeTestJob
from pipeline.jobs.pool import run_jobs

__all__ = ["rows"]

WORKERS, TARGET = 2, 1.8


def rows(
    settings: Settings, tests: int = 20, iterations: int = 30, seconds: float = 80
) -> Iterator[Row]:
    """Yield the row of many tests, and those of the validation; all compute with one thread."""
    runtime = Runtime(device=str(settings.device))
    yield _many_tests(settings, runtime, tests, iterations, 0.85 * seconds)
    yield from _validation(settings, runtime, iterations, 0.15 * seconds)


def _many_tests(
    settings: Settings, runtime: Runtime, tests: int, iterations: int, seconds: float
) -> Row:
    plan = RangeTestPlan(RangeTestOptions(iterations=iterations))
    jobs = [RangeTestJob(str(seed), Task(seed=seed, data_seed=seed), plan) for seed in range(tests)]

    prepared = PreparedTask(Task(), runtime)

    def run(count: int, some: list[RangeTestJob]) -> None:
        for result in run_jobs(some, runtime, count, prepared=prepared):
            if isinstance(result, FailedJob):
                raise RuntimeError(result.reason)

    # Starts the processes, and loads the data in all of them.
    run(WORKERS, jobs[: 2 * WORKERS])
    cases = {"one": lambda: run(1, jobs), "several": lambda: run(WORKERS, jobs)}
    timings = interleaved(cases, settings, seconds, warm_up=False)
    one, several = (_per_second(timings[name], tests) for name in cases)
    return compared(
        f"workers: {tests} tests with {WORKERS}",
        f"range tests per second of {tests} tests of {iterations} iterations with {WORKERS} "
        "workers, which have started before; baseline: one after the other",
        several,
        one,
        target=TARGET,
        compares="ratio, at least",
        unit="tests/s",
    )


def _per_second(timing: Timing, tests: int) -> Timing:
    return Timing([tests / seconds for seconds in timing.seconds], timing.error)


def _validation(
    settings: Settings, runtime: Runtime, iterations: int, seconds: float
) -> Iterator[Row]:
    """Yield what a validation loss costs, of which the documentation gives the figures."""
    torch.set_num_threads(1)
    prepared = PreparedTask(Task(), runtime)
    state = prepared.initial_weights()
    ramp = RangeTestOptions(iterations=iterations, lr_end=1e-2, stop_multiple=None)
    cases = {}
    for kind in ("none", "sample", "full"):
        plan = RangeTestPlan(ramp, validation=ValidationOptions(kind))
        cases[kind] = lambda plan=plan: _tested(prepared, state, plan)
    timings = interleaved(cases, settings, seconds)
    for kind in ("sample", "full"):
        yield compared(
            f"validation: {kind}",
            f"milliseconds per step of a range test with --validation {kind}; baseline: none",
            timings[kind],
            timings["none"],
            per=iterations,
            unit="ms",
            scale=1e3,
        )


def _tested(prepared: PreparedTask, state: dict[str, torch.Tensor], plan: RangeTestPlan) -> None:
    prepared.range_test(state, plan)
