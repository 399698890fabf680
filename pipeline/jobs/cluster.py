"""Jobs on a Ray cluster: tasks of Ray, which runs them again where a worker is killed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import hide_passwords
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
        If the cluster cannot be reached, or has no such device.
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
                    reason = (
                        f"its worker was ended {TRIES} times, perhaps for want of memory "
                        f"({type(error).__name__})"
                    )
                    yield index, FailedJob(job, reason)


def _run(placed: Placed, data: list[Any]) -> tuple[int, JobResult]:
    """Run a job in a worker of Ray, which keeps the data for its next one."""
    import ray

    if data not in _received:
        _received[:] = [data]
        shared = ray.get(data[0])
        if shared is not None:
            shared.use()
    return run_placed(placed)


_received: list[Any] = []
"""The data that this process has got."""


@contextmanager
def _connected(backend: str, workers: int | None, gpus: float) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine and end it with the block."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    address = backend if "://" in backend else os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {
        "address": address,
        "logging_level": "critical",
        "log_to_driver": False,
    }
    if address == "local":
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"num_cpus": workers} if workers is not None else {}
    else:
        _require_reachable(address)
    for attempt in range(ATTEMPTS):
        try:
            ray.init(**options)
            break
        except ConnectionAbortedError as error:  # a cluster that has just started
            if attempt == ATTEMPTS - 1:
                raise _unusable(address, error) from error
            time.sleep(CONNECT_SECONDS)
        except Exception as error:
            raise _unusable(address, error) from error
    try:
        found = ray.cluster_resources().get("GPU", 0)
        if gpus > found:
            raise LRRTError(
                f"gpus_per_test={gpus:g}, but Ray cluster {address} has {found:g} GPUs: add some, "
                "or use device=cpu"
            )
        yield ray
    finally:
        ray.shutdown()


def _unusable(address: str, error: Exception) -> LRRTError:
    return LRRTError(
        hide_passwords(
            f"Ray cluster {address} cannot be used ({first_line(error)}): start it, with the same "
            "versions of Python and Ray, or leave backend out"
        )
    )


def _require_reachable(address: str) -> None:
    """Raise LRRTError unless something answers at an address; Ray would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:  # such as auto
        return
    try:
        socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise LRRTError(
            f"Ray cluster {hide_passwords(address)} cannot be reached ({first_line(error)}): start "
            "it, or correct backend or RAY_ADDRESS"
        ) from None
