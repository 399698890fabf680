"""Jobs on a Ray cluster: tasks of Ray, which runs them again where a worker is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import require
from pipeline.jobs.jobs import FailedJob, JobResult, SharedData
from pipeline.jobs.placed import TRIES, Placed, run_placed

__all__ = ["results_on_ray"]

ATTEMPTS, CONNECT_SECONDS = 4, 5
"""To connect to a cluster that answers and is not ready; and how long each address has."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Lines of Ray's own, about its future defaults and about what it has cleaned up.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""What Ray reads from its environment when it is imported."""
ENDED = {"WorkerCrashedError", "LocalRayletDiedError", "NodeDiedError", "OutOfMemoryError"}
"""Errors of Ray's that mean the end of a worker, or of all on its node."""


def results_on_ray(
    placed: Sequence[Placed],
    backend: str,
    workers: int | None,
    gpus: float,
    shared: SharedData | None,
) -> Generator[tuple[int, JobResult]]:
    """Yield the index and the result of each job as soon as it is there.

    ``gpus`` is what each job takes of a GPU. At most ``workers`` run at a time; None: as many as
    the cluster has room for.

    Raises
    ------
    LRRTError
        If the cluster cannot be reached, has no such device, or is lost meanwhile.
    """
    with _connected(backend, workers, gpus) as ray:
        task = ray.remote(_run).options(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)
        # In a list, so that a worker gets it once, and not every job.
        data = [ray.put(shared)]
        waiting = iter(placed)
        running = {task.remote(each, data): each for each in islice(waiting, workers)}
        while running:
            # A moment, after which Python looks for Ctrl-C.
            done, _ = ray.wait([*running], timeout=0.5)
            for reference in done:
                index, job, _ = running.pop(reference)
                running |= {task.remote(each, data): each for each in islice(waiting, 1)}
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield index, FailedJob(job, _reason(error))


def _run(placed: Placed, data: list[Any]) -> tuple[int, JobResult]:
    """Run a job in a worker of Ray, which keeps the data for its next one."""
    import ray

    if data not in _received:
        shared = ray.get(data[0])
        if shared is not None:
            shared.use()
        _received[:] = [data]
    return run_placed(placed)


def _reason(error: Exception) -> str:
    """Return why Ray has no result of a job: that its worker was ended, or could not run it."""
    kind = type(error).__name__
    if kind in ENDED:
        return f"its worker was ended {TRIES} times, perhaps for want of memory ({kind})"
    # Of what was raised in a worker, the text of Ray's error is a traceback.
    cause = getattr(error, "cause", None) or error
    return f"its worker could not run it ({type(cause).__name__}: {first_line(cause)})"


_received: list[Any] = []
"""The data that this process has got."""


@contextmanager
def _connected(backend: str, workers: int | None, gpus: float) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine and end it with the block."""
    address = backend if "://" in backend else os.environ.get("RAY_ADDRESS") or "local"
    with _quiet():
        if address == "auto":
            address = _cluster_here()
        if address not in ("local", "auto"):
            _require_reachable(address)
        import ray

        try:
            with _own_sigterm():
                _connect(ray, address, workers)
            found = ray.cluster_resources()
            cores, there = found.get("CPU", 0), found.get("GPU", 0)
            require(
                cores >= 1,
                f"Ray cluster {address} has {cores:g} cores, and each test takes one: add some",
            )
            require(
                gpus <= there,
                f"gpus_per_test={gpus:g}, but Ray cluster {address} has {there:g} GPUs: add some, "
                "or use device=cpu",
            )
            yield ray
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise LRRTError(
                f"Ray cluster {address} was lost ({first_line(error)}): start it, and give the "
                "same command again"
            ) from error
        finally:
            ray.shutdown()


def _cluster_here() -> str:
    """Return the address that ``auto`` stands for, perhaps that of a cluster which has ended."""
    # If there is none, ray.init says so.
    with suppress(ConnectionError, ImportError):
        from ray._private.services import canonicalize_bootstrap_address

        return str(canonicalize_bootstrap_address("auto"))
    return "auto"


def _connect(ray: Any, address: str, workers: int | None) -> None:
    options: dict[str, Any] = {
        "address": address,
        "logging_level": "critical",
        "log_to_driver": False,
    }
    if address == "local":
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"num_cpus": workers} if workers is not None else {}
    for attempt in range(ATTEMPTS):
        try:
            ray.init(**options)
            return
        except Exception as error:
            # An aborted connection is that of a cluster which has just started.
            if attempt == ATTEMPTS - 1 or not isinstance(error, ConnectionAbortedError):
                raise LRRTError(
                    f"Ray cluster {address} cannot be used ({first_line(error)}): start it, with "
                    "the same versions of Python and Ray, or leave backend out"
                ) from error
            time.sleep(CONNECT_SECONDS)


@contextmanager
def _quiet() -> Iterator[None]:
    added = {name: value for name, value in QUIET.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does at SIGTERM: Ray sets handlers that end it as a failure."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # of such a handler
        raise KeyboardInterrupt("terminated") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _require_reachable(address: str) -> None:
    """Raise LRRTError unless something answers at an address; Ray would try for minutes."""
    known = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d{1,5})", address)
    if known is None:
        raise LRRTError(
            f"RAY_ADDRESS={address!r} is not known: give HOST:PORT, ray://HOST:PORT, auto or local"
        )
    host, port = known[1].strip("[]"), int(known[2])
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise LRRTError(
            f"Ray cluster {address} cannot be reached ({first_line(error)}): start it, or correct "
            "backend or RAY_ADDRESS"
        ) from None
