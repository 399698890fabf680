"""The commands on a tracking server over HTTP; the other tests use a sqlite store."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import pytest

from mlflow_project import load_handoff


@pytest.fixture
def server(store, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_the_chain_runs_on_a_server_over_http(store, server):
    options = ("--trials", 1, "--trial-epochs", 1, "--epochs", 2, "--tracking-uri", server)
    outcome = store.run("main", *store.SMALL, *options, "--experiment", "served")
    assert f"Open it in the MLflow UI: {server}" in outcome.out
    parent = store.one("main")
    assert parent.info.status == "FINISHED"
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:")
    assert "summary.png" in store.artifacts(parent)
    assert len(store.history(store.one("train"), "train_loss")[0]) == 22
    handoff = load_handoff(parent.data.tags["lrrt.lrrt_run_id"])
    assert handoff.weights_sha256 == parent.data.tags["lrrt.weights_sha256"]
    (logged,) = store.one("train").outputs.model_outputs
    assert mlflow.pytorch.load_model(f"models:/{logged.model_id}") is not None


def test_the_default_is_a_store_in_the_current_folder(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    script = "import mlflow; print(mlflow.get_tracking_uri())"
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.strip() == f"sqlite:///{tmp_path}/mlflow.db"
