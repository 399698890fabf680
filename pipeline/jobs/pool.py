"""Jobs side by side. What they compute does not depend on how many there are at a time."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lrrt_stage import LRRTError, resolve_device
from lrrt_stage.errors import first_line
from pipeline.jobs.jobs import FailedJob, Job, JobResult, SharedData
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Job],
    runtime: Runtime,
    workers: int | None = None,
    on_done: Callable[[JobResult], None] | None = None,
    prepared: PreparedTask | None = None,
) -> list[JobResult]:
    """Run ``jobs`` in ``workers`` processes and return their results in the order of ``jobs``.

    On the CPU each job computes with one thread, so that its result is the same bit for bit with
    any number of workers. Several GPUs are taken in turn. A job that fails does not end the others.

    ``workers`` of None is one for each core, or for each GPU; one runs the jobs in this process.
    The processes are joblib's: inside ``joblib.parallel_config(backend=…)`` they are those of
    another backend, a cluster's for example. ``on_done`` is called in this process with every
    result as soon as it is there. If the data of ``prepared`` is in memory, each process gets it
    once, and does not load it.
    """
    devices = _devices(runtime.device)
    by_default = joblib.cpu_count() if devices == ["cpu"] else len(devices)
    count = min(workers or by_default, max(len(jobs), 1))
    placed = [
        (index, job, replace(runtime, device=devices[index % len(devices)]))
        for index, job in enumerate(jobs)
    ]
    results: dict[int, JobResult] = {}
    shared = None if prepared is None else SharedData.of(prepared)
    for index, result in _results(placed, count, shared):
        results[index] = result
        if on_done is not None:
            on_done(result)
    return [results[index] for index in range(len(jobs))]


Placed = tuple[int, Job, Runtime]


def _results(
    placed: Sequence[Placed], count: int, shared: SharedData | None
) -> Iterator[tuple[int, JobResult]]:
    if count == 1:
        if shared is not None:
            shared.use()
        yield from map(_run, placed)
        return
    begin = {"initializer": _begin_worker, "initargs": (os.getpid(), platform.node(), shared)}
    pool = joblib.Parallel(n_jobs=count, return_as="generator_unordered", **begin)
    try:
        yield from pool(joblib.delayed(_run)(each) for each in placed)
    except TerminatedWorkerError:
        raise LRRTError(
            f"one of {count} worker processes was ended from outside, perhaps for want of memory: "
            "what is finished is kept, run again with fewer workers"
        ) from None


def _run(placed: Placed) -> tuple[int, JobResult]:
    index, job, runtime = placed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return index, job.run(runtime)
    except Exception as error:  # one bad test must not end a study
        kind = "" if isinstance(error, LRRTError) else f"{type(error).__name__}: "
        return index, FailedJob(job, kind + first_line(error))
    finally:
        torch.set_num_threads(threads)


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
