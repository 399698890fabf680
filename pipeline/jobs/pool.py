"""Jobs side by side. What they compute does not depend on how many there are at a time."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lrrt_stage import resolve_device
from lrrt_stage.settings import require
from pipeline.jobs.cluster import results_on_ray
from pipeline.jobs.jobs import FailedJob, Job, JobResult, SharedData
from pipeline.jobs.placed import TRIES, Placed, run_placed
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Job],
    runtime: Runtime,
    workers: int | None = None,
    on_done: Callable[[JobResult], None] | None = None,
    prepared: PreparedTask | None = None,
    *,
    backend: str | None = None,
    gpus_per_test: float | None = None,
) -> list[JobResult]:
    """Run ``jobs`` in ``workers`` processes and return their results in the order of ``jobs``.

    On the CPU each job computes with one thread, so that its result is the same bit for bit with
    any number of workers. Here, the GPUs are given to the jobs in turn before they start: while a
    slow job still runs, the next one on its GPU may begin. A cluster gives each job a GPU that has
    room for it. A job that fails does not end the others, nor does a worker that is killed: its
    job is run again, and fails if that happens every time.

    ``workers`` of None is one for each core, or for each GPU; one runs the jobs in this process.
    The processes are joblib's: inside ``joblib.parallel_config(backend=…)`` they are those of
    another backend. With the ``backend`` ``ray`` or ``ray://HOST:PORT`` they are those of a Ray
    cluster. ``on_done`` is called in this process with every result as soon as it is there. If the
    data of ``prepared`` is in memory, each process gets it once, and does not load it.

    Raises
    ------
    LRRTError
        If there is no such device, or the cluster cannot be used.
    """
    devices = _devices(runtime.device)
    on_gpu = devices[0].startswith("cuda")
    require(
        on_gpu or gpus_per_test is None,
        f"gpus_per_test={gpus_per_test}, and the tests run on {devices[0]}: leave it out, or give "
        "device=cuda on a machine with a GPU",
    )
    shared = None if prepared is None else SharedData.of(prepared)
    results: dict[int, JobResult] = {}
    if not jobs:
        return []
    if backend is not None:
        # Of the GPUs of a machine, a worker sees those that Ray has given it.
        here = replace(runtime, device="cuda" if on_gpu else devices[0])
        placed = [(index, job, here) for index, job in enumerate(jobs)]
        gpus = (gpus_per_test or 1.0) if on_gpu else 0.0
        found = results_on_ray(placed, backend, workers, gpus, shared)
    else:
        by_default = len(devices) * int(1 / (gpus_per_test or 1)) if on_gpu else joblib.cpu_count()
        count = min(workers or by_default, len(jobs))
        placed = [
            (index, job, replace(runtime, device=devices[index % len(devices)]))
            for index, job in enumerate(jobs)
        ]
        found = _results(placed, count, shared)
    with closing(found):
        for index, result in found:
            results[index] = result
            if on_done is not None:
                on_done(result)
    return [results[index] for index in range(len(jobs))]


def _results(
    placed: Sequence[Placed], count: int, shared: SharedData | None
) -> Generator[tuple[int, JobResult]]:
    if count == 1:
        if shared is not None:
            shared.use()
        yield from map(run_placed, placed)
        return
    missing = {index: (index, job, runtime) for index, job, runtime in placed}
    for _ in range(TRIES - 1):
        try:
            for index, result in _side_by_side([*missing.values()], count, shared):
                del missing[index]
                yield index, result
            return
        except TerminatedWorkerError:  # which of those that ran has done that is not known
            pass
    for each in [*missing.values()]:
        try:
            yield from _side_by_side([each], 2, shared)
        except TerminatedWorkerError:
            reason = f"its worker was ended {TRIES} times, perhaps for want of memory"
            yield each[0], FailedJob(each[1], reason)


def _side_by_side(
    placed: Sequence[Placed], count: int, shared: SharedData | None
) -> Iterator[tuple[int, JobResult]]:
    begin = {"initializer": _begin_worker, "initargs": (os.getpid(), platform.node(), shared)}
    pool = joblib.Parallel(n_jobs=count, return_as="generator_unordered", **begin)
    yield from pool(joblib.delayed(run_placed)(each) for each in placed)


def _begin_worker(parent: int, machine: str, shared: SharedData | None) -> None:
    """Take the data, leave Ctrl-C to the process ``parent``, and end with it, even if killed."""
    if shared is not None:
        shared.use()
    # Ctrl-C goes to all processes of a terminal: the parent ends its workers, without their noise.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # That of a cluster may be on a different machine. On Windows, os.kill would kill the parent.
    if machine == platform.node() and os.name == "posix":
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()


def _end_with(parent: int) -> None:
    # It may have ended before the worker has started, which then has another parent from the start.
    started_by = os.getppid()
    while os.getppid() == started_by:
        try:
            os.kill(parent, 0)
        except OSError:  # no such process
            break
        time.sleep(1)
    os._exit(1)


def _devices(name: str) -> list[str]:
    """Return the devices that jobs are spread over: all GPUs where no one of them was named."""
    device = resolve_device(name)
    if device.type == "cuda" and name in ("auto", "cuda"):
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(device)]
