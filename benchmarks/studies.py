"""What a study's workers gain, and what a validation loss at every iteration costs.

Everything is measured in rounds that take turns, and medians are compared. On the CPU a test
computes with one thread. Run it with ``make bench``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import click
import torch

from lrrt_stage import RangeTestOptions
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task, ValidationOptions
from pipeline.jobs.jobs import RangeTestJob
from pipeline.jobs.pool import run_jobs


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def workers_speedup(task, tests, workers, rounds, runtime):
    """Print how much faster ``tests`` range tests end with workers than one after the other."""
    jobs = [
        RangeTestJob(str(seed), replace(task, seed=seed, data_seed=seed), RangeTestPlan())
        for seed in range(tests)
    ]
    run_jobs(jobs[:workers], runtime, workers)  # starts the processes
    taken = {1: [], workers: []}
    for _ in range(rounds):
        for count, times in taken.items():
            times.append(seconds(lambda count=count: run_jobs(jobs, runtime, count)))
    alone, together = (median(times) for times in taken.values())
    print(
        f"{tests} tests of {task.dataset} {task.model}: {alone:.1f} s one after the other, "
        f"{together:.1f} s with {workers} workers: {alone / together:.2f} times as fast"
    )


def validation_cost(task, rounds, runtime):
    """Print how much longer a range test takes that is validated at every iteration."""
    prepared = PreparedTask(task, runtime)
    state = prepared.initial_weights()
    ramp = RangeTestOptions(lr_end=1e-2, stop_multiple=None)
    plans = {
        kind: RangeTestPlan(ramp, validation=ValidationOptions(kind))
        for kind in ("none", "sample", "full")
    }
    taken = {kind: [] for kind in plans}
    for each in range(rounds + 1):
        for kind, plan in plans.items():
            time_taken = seconds(lambda plan=plan: prepared.range_test(state, plan))
            if each:  # the first round warms up
                taken[kind].append(time_taken)
    base = median(taken["none"])
    ratios = {kind: median(times) / base for kind, times in taken.items()}
    print(
        f"validation of {task.dataset} {task.model}: sample x{ratios['sample']:.2f}, full set at "
        f"every iteration x{ratios['full']:.2f}"
    )


@click.command()
@click.option("--device", default="auto")
@click.option("--rounds", default=5)
@click.option("--tests", default=20)
@click.option("--workers", default=2)
def main(device, rounds, tests, workers):
    torch.set_num_threads(1)
    runtime = Runtime(device=device)
    for model in ("cnn", "resnet20"):
        validation_cost(Task(model=model), rounds, runtime)
    for model in ("cnn", "resnet20"):
        workers_speedup(Task(model=model), tests, workers, max(1, rounds // 2), runtime)


if __name__ == "__main__":
    main()
