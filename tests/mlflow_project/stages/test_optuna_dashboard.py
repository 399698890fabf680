"""Optuna's own pages on the storage of a refinement."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("optuna_dashboard")


@pytest.fixture
def ask(store, tmp_path):
    """A function from a path of the dashboard, on a refinement's storage, to its answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(sys.executable).with_name("optuna-dashboard")
    command = [script, f"sqlite:///{tmp_path}/optuna.db", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answer(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return json.load(response)

    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                answer("/api/studies")
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        yield answer
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.starts_with("refine")
def test_the_dashboard_shows_the_search_that_mlflow_shows(store, ask):
    run = store.one("refine")
    (study,) = ask("/api/studies")["study_summaries"]
    assert study["study_name"] == run.data.params["study_name"]
    trials = ask(f"/api/studies/{study['study_id']}")["trials"]
    children = store.runs("trial")
    assert len(trials) == len(children) == 4
    assert min(each["values"][0] for each in trials) == run.data.metrics["val_loss"]
    shown = {float(each["params"][0]["param_external_value"]) for each in trials}
    assert shown == {each.data.metrics["trained_lr_max"] for each in children}
