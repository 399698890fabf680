"""What a stage asks of a server: how many requests, how long they take, and what is sent twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.performance.rounds import Settings, process, python
from benchmarks.performance.rows import Row

__all__ = ["rows"]

REQUESTS, SECONDS, UPLOADS = 10, 0.5, 1
"""Targets."""
FILES = "/mlflow-artifacts/artifacts/"
START_SECONDS = 90


def rows(settings: Settings, iterations: int = 1000) -> Iterator[Row]:
    """Yield the rows of one stage; another one before it has made the experiment."""
    with mlflow_server(settings) as address:
        command = python("-m", "benchmarks.performance.counted", address)
        process([*command, "100"], settings)
        lines = process([*command, str(iterations)], settings).splitlines()
    made = json.loads(lines[-1])
    stage = f"of one stage `lrrt` of {iterations} iterations on a local MLflow server"
    asked = Counter(f"{method} {_endpoint(path)}" for method, path, _ in made)
    sent = Counter(path.rsplit("/", 1)[-1] for method, path, _ in made if _is_upload(method, path))
    yield Row(
        "server: requests",
        f"HTTP requests {stage}, from the connection to the end, beside the uploads of files",
        len(made) - sum(sent.values()),
        target=REQUESTS,
        unit="requests",
        rounds=1,
        compares="measured",
        listing=dict(asked.most_common()),
    )
    yield Row(
        "server: seconds in requests",
        f"seconds that the requests {stage} took",
        sum(seconds for *_, seconds in made),
        target=SECONDS,
        rounds=1,
        compares="measured",
    )
    yield Row(
        "server: uploads of one file",
        f"how often the file was uploaded that was uploaded most often, {stage}",
        max(sent.values(), default=0),
        target=UPLOADS,
        unit="uploads",
        rounds=1,
        compares="measured",
        listing=dict(sent.most_common()),
    )


def _is_upload(method: str, path: str) -> bool:
    return method == "PUT" and FILES in path


def _endpoint(path: str) -> str:
    """Return a path without the ids of experiments and runs."""
    return f"{FILES}…/{path.rsplit('/', 1)[-1]}" if FILES in path else path


@contextmanager
def mlflow_server(settings: Settings, store: str | None = None, workers: int = 1) -> Iterator[str]:
    """Run an MLflow server on a free port, and give its address; it serves the files as well.

    The store is a SQLite file, unless an address is given.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address, folder = f"http://127.0.0.1:{port}", settings.folder
    command = python("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port)
    store = store or f"sqlite:///{folder / 'server.db'}"
    command += ["--workers", str(workers), "--backend-store-uri", store, "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "server-files")]
    # Processes for evaluations of language models, which nobody asks for here.
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=settings.environment() | variables,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait(server, f"{address}/health")
        yield address
    finally:
        # With the worker that it has started, which is of the same session.
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: subprocess.Popen, address: str) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server did not answer within {START_SECONDS} seconds")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
