"""Servers for tests: processes on a free port of 127.0.0.1, until they are not needed any more."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.forked_python import programs


@contextmanager
def mlflow_server(*options: str, folder: Path) -> Iterator[str]:
    """Serve MLflow from ``folder``, and give its address."""
    command = [programs() / "mlflow", "server", *options, "--workers", "1"]
    with serving(command, "/health", folder) as address:
        yield address


@contextmanager
def serving(command: Sequence[str | Path], path: str, folder: Path) -> Iterator[str]:
    """Run a server that answers at ``path`` once it is ready, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port],
            cwd=folder,
            # What a server tells MLflow of its use needs a network.
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # Processes for evaluations of language models, which nobody asks for here.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"{address}{path}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        # Asked as by Ctrl-C. Whether a server of others then ends is not for these tests to say.
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
