"""Workers of a search: processes that run `lrrt-stage refine`, with short times and slow trials."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from tests.forked_python import programs
from tests.stores import search_path

SCRIPT = """
import os, sys, time
from pathlib import Path
from pipeline.training import refinement, search
from mlflow_project.cli import entry

search.HEARTBEAT_SECONDS, refinement.WAIT_SECONDS = 1, 0.1
search.GRACE_SECONDS = int(os.environ.get("GRACE", 2))
search.PATIENCE_SECONDS = float(os.environ.get("PATIENCE", 60))
real, pause, me = refinement.train, float(os.environ["PAUSE"]), os.environ["WORKER"]

def slow(*args, on_epoch, **more):
    def after(training):
        on_epoch(training)
        Path(f"pid-{me}").write_text(str(os.getpid()))
        time.sleep(pause)
    return real(*args, on_epoch=after, **more)

refinement.train = slow
entry.main(sys.argv[1:])
"""


def start(name: str, *arguments: object, pause: float = 0.2, **variables: str) -> subprocess.Popen:
    """Start a worker; after its first epoch, its own process is in the file ``pid-NAME``."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_NAME": "test",
        "PATH": search_path(),
        "OMP_NUM_THREADS": "1",
        "PAUSE": str(pause),
        "WORKER": name,
    }
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # which MLflow sets beside the name
    command = [programs() / "python", "-c", SCRIPT, "refine", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment | variables, stdout=pipe, stderr=pipe, text=True
    )


def until(found: Callable[[], object], seconds: float = 60) -> object:
    """Wait for something, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def process_of(name: str) -> int:
    """Return the process of a worker, which has trained for an epoch."""
    path = Path(f"pid-{name}")
    return int(str(until(lambda: path.exists() and path.read_text())))


@contextmanager
def ended(*workers: subprocess.Popen) -> Iterator[None]:
    """End the workers that are still there at the end of a block."""
    try:
        yield
    finally:
        for each in workers:
            if each.poll() is None:
                each.kill()  # and with it the process that it stands for
            each.communicate()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a SQLite file so that nobody else can read or write it."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()
