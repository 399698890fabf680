"""Ctrl-C at bad moments, disks and rights that are missing, and stages that start at once."""

import signal
import sys
import time
from pathlib import Path

import mlflow
import pytest

from mlflow_project.tracking import outbox
from tests.faulty_store import proxy
from tests.mlflow_project.stages.test_killed import checkpoint, kept, start, until
from tests.servers import mlflow_server
from tests.stores import interrupted_after_epoch

pytestmark = pytest.mark.slow
ADMIN_PASSWORD = "Of this test alone, 42"


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("fault", ["hangs", "gone"])
def test_ctrl_c_while_the_server_is_away_ends_in_seconds_and_the_line_is_right(
    store, tmp_path, monkeypatch, fault
):
    monkeypatch.setenv("HOME", str(tmp_path))
    backend = ("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db")
    files = ("--artifacts-destination", str(tmp_path / "artifacts"), "--serve-artifacts")
    with mlflow_server(*backend, *files, folder=tmp_path) as server, proxy(server) as between:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "interrupted")
        mlflow.set_tracking_uri(between.address)
        mlflow.set_experiment("interrupted")
        store.run("lrrt", *store.SMALL)
        training = start("train", "--epochs", 150)
        run_id = until(checkpoint).parents[1].name
        between.fail(fault)
        time.sleep(2)
        training.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = training.communicate(timeout=60)
        assert time.monotonic() - began < 15
        assert training.returncode == 130
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("Interrupted: ")]
        assert f"--resume {run_id} continues" in line
        between.answer()
        epochs = int(line.split()[1])
        outcome = store.run("train", "--epochs", 150, "--resume", run_id)
        assert "Error" not in outcome.err
        resumed = store.runs("train")[0]
        assert resumed.info.status == "FINISHED"
        assert epochs > 0
        assert mlflow.get_run(run_id).info.status == "KILLED"


@pytest.mark.starts_with("lrrt")
def test_a_second_ctrl_c_deletes_nothing(store, monkeypatch):
    training = start("train", "--epochs", 150)
    run_id = until(checkpoint).parents[1].name
    for _ in range(4):
        training.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130, err
    assert "Traceback" not in err
    here, sent = Path(".lrrt") / run_id, store.artifacts(mlflow.get_run(run_id))
    assert here.is_dir() or "checkpoint.safetensors" in sent
    store.run("train", "--epochs", 150, "--resume", run_id)


@pytest.mark.starts_with("lrrt")
def test_ctrl_c_after_the_last_epoch_is_resumed(store, monkeypatch):
    stage = sys.modules["mlflow_project.stages.train"]

    def interrupted(training):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "training_figure", interrupted)
        outcome = store.run("train", "--epochs", 3, code=130)
    run = store.one("train")
    assert "3 epochs are kept; " in outcome.err
    assert {"final_weights.safetensors", "checkpoint.safetensors"} <= store.artifacts(run)
    store.run("train", "--epochs", 3, "--resume", run.info.run_id)
    resumed = store.runs("train")[0]
    name = "lrrt.final_weights_sha256"
    assert resumed.data.tags[name] == run.data.tags[name]


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_transaction_comes_after_it(store, monkeypatch, number):
    real = outbox.MlflowClient.log_batch
    epochs = []

    def in_a_transaction(client, run_id, metrics=(), **more):
        if any(each.key == "train_loss" for each in metrics):
            epochs.append(1)
            if len(epochs) == 2:
                signal.raise_signal(number)
        return real(client, run_id, metrics=metrics, **more)

    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(outbox.MlflowClient, "log_batch", in_a_transaction)
            outcome = store.run("train", "--epochs", 4, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "transaction" not in outcome.err
    run = store.one("train")
    assert run.info.status == "KILLED"
    assert len(store.history(run, "train_loss")[0]) == 22


@pytest.mark.starts_with("lrrt")
def test_inside_the_chain_the_same_command_goes_on_with_the_training(store):
    chain = ("main", *store.SMALL, "--epochs", 4, "--refine", "true", "--trials", 1)
    store.run(*chain)
    whole = store.one("train")
    chain = (*chain, "--data-seed", 0, "--weight-decay", 0.001)
    store.run(*chain)
    whole = store.runs("train")[0]
    mlflow.MlflowClient().delete_run(whole.info.run_id)
    with interrupted_after_epoch(2):
        outcome = store.run(*chain, "--reuse", "true", code=130)
    assert "in train (2 epochs are kept); the same command with --reuse true goes on" in outcome.err
    interrupted = store.runs("train")[0].info.run_id
    outcome = store.run(*chain, "--reuse", "true")
    assert f"train: continuing run {interrupted}" in outcome.err
    assert store.runs("train")[0].data.tags["lrrt.resumed_run_id"] == interrupted


def test_out_of_memory_is_one_line_and_keeps_the_curve(store, monkeypatch, tmp_path):
    (tmp_path / "large.py").write_text(
        "from torch import nn\nimport torch\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layers, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.calls > 40:\n"
        "            torch.empty(2**60)\n"
        "        return self.layers(x)\n"
        "def make():\n"
        "    return Model()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("--model", "large:make", "--batch-size", 128, "--device", "cpu")
    store.run("lrrt", *options, code=2).names("out of memory", "batch_size=128", "lower")
    run = store.one("lrrt")
    assert {"initial_weights.safetensors", "curve.csv"} <= store.artifacts(run)
    assert len(store.history(run, "train_loss")[0]) >= 30
    sys.modules.pop("large")


def test_six_stages_start_at_once_on_a_store_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/new.db"
    options = ("--model", "mlp", "--batch-size", 128, "--device", "cpu", "--iterations", 30)
    new = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "new"}
    stages = [start("lrrt", *options, "--seed", seed, **new) for seed in range(6)]
    ends = [(stage.communicate(timeout=200)[1], stage.returncode) for stage in stages]
    assert [err for err, code in ends if code != 0] == []


def test_a_login_that_may_not_write_is_one_line(store, tmp_path, monkeypatch):
    pytest.importorskip("flask_wtf")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "of this test alone")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMIN_PASSWORD)
    backend = ("--backend-store-uri", f"sqlite:///{tmp_path}/served.db")
    with mlflow_server(*backend, "--app-name", "basic-auth", folder=tmp_path) as server:
        import requests

        admin = ("admin", ADMIN_PASSWORD)
        user = {"username": "reader", "password": "read only, 42 Letters"}
        made = requests.post(f"{server}/api/2.0/mlflow/users/create", json=user, auth=admin)
        made.raise_for_status()
        shared = {"name": "shared"}
        made = requests.post(f"{server}/api/2.0/mlflow/experiments/create", json=shared, auth=admin)
        made.raise_for_status()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user["username"])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user["password"])
        options = ("--tracking-uri", server, "--experiment", "shared")
        outcome = store.run("lrrt", *store.SMALL, *options, code=2)
        outcome.names(server, "rights")
        assert user["password"] not in outcome.err + outcome.out
        assert kept() == []
