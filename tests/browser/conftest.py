"""One store filled by the product's own commands, a server on it, and a browser.

They are made once a module: `make test` gives all tests of a file to one worker.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from mlflow_project.cli import entry as cli

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SMALL = ("--model", "mlp", "--batch-size", "128", "--device", "cpu")
COMMANDS = (
    ("main", *SMALL, "--epochs", "2", "--trials", "2", "--register", "lrrt-digits"),
    ("train", "--lrrt-run-id", "latest", "--epochs", "1", "--schedule", "constant"),
    ("study", *SMALL, "--tests", "5", "--workers", "1"),
    ("lrrt", "--batch-size", "32", "--device", "cpu"),
    ("lrrt", "--batch-size", "256", "--device", "cpu"),
)


@dataclass(frozen=True)
class Site:
    """A running MLflow UI, and what is in its store."""

    address: str
    experiment_id: str
    runs: list[Run]

    def run(self, stage: str, **params: str) -> Run:
        """The one run of a stage with these parameters."""
        (run,) = (
            each
            for each in self.runs
            if each.data.tags["lrrt.stage"] == stage and params.items() <= each.data.params.items()
        )
        return run


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None or find_spec("playwright") is None:
        pytest.skip("needs playwright and Chromium (apt-get install chromium, or set CHROMIUM)")
    return CHROMIUM


@pytest.fixture(scope="module")
def site(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    store = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        mlflow.set_tracking_uri(store)
        experiment_id = mlflow.create_experiment("lrrt", (folder / "artifacts").as_uri())
        mlflow.set_experiment(experiment_id=experiment_id)
        for command in COMMANDS:
            with pytest.raises(SystemExit) as exit_:
                cli.main(list(command))
            assert exit_.value.code == 0, command
        runs = mlflow.search_runs(output_format="list")
        with server(store, folder) as address:
            yield Site(address, experiment_id, runs)


@contextlib.contextmanager
def server(store: str, folder: Path):
    """An MLflow server on a free port, until it is not needed any more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    options = ("--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port))
    command = [sys.executable, "-m", "mlflow", "server", *options, "--workers", "1"]
    log = folder / "server.log"
    # What a server tells MLflow of its use needs a network.
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            deadline = time.monotonic() + 90
            while not healthy(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
            yield address
        finally:
            process.terminate()


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def browser(chromium):
    # Not for the session: while it is open, this thread has an event loop that is running.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A page of a browser that has never been here; its picture, if SCREENSHOTS is a folder."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()
