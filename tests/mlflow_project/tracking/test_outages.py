"""A store that goes away while a stage works: what was computed is kept, and sent later, once."""

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest

from lrrt_stage import digest
from lrrt_stage.state import weights
from mlflow_project import load_handoff
from mlflow_project.handoff.handoff import source_of
from mlflow_project.tracking import record
from tests.faulty_store import proxy
from tests.mlflow_project.stages.test_killed import holder, kept, start, until
from tests.servers import mlflow_server

pytestmark = pytest.mark.slow
EPOCHS, NAME = ("--epochs", 4), "MLFLOW_EXPERIMENT_NAME"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of MLflow that the tests of this file share, each with an experiment of its own."""
    folder = tmp_path_factory.mktemp("served")
    options = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db")
    artifacts = ("--artifacts-destination", str(folder / "artifacts"))
    with mlflow_server(*options, *artifacts, folder=folder) as address:
        yield address


@pytest.fixture
def faulty(store, server, tmp_path, monkeypatch, request):
    """The server behind a proxy, with a finished range test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with proxy(server) as between:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
        mlflow.set_tracking_uri(between.address)
        mlflow.set_experiment(request.node.name[-60:])
        store.run("lrrt", *store.SMALL)
        yield between
        between.answer()


def experiment():
    return mlflow.get_experiment(mlflow.tracking.fluent._get_experiment_id()).name


def sync(store):
    outcome = store.run("sync")
    assert kept() == []
    return outcome


def final_digest(run):
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="final_weights.safetensors"
    )
    return digest(weights.load(path))


@pytest.mark.parametrize("fault", ["gone", "hangs", 500, 503])
def test_a_training_goes_on_without_its_server(store, faulty, fault):
    store.run("train", *EPOCHS)
    whole = store.one("train")
    faulty.gone_after_epochs(2, fault)
    started = time.monotonic()
    outcome = store.run("train", *EPOCHS, "--max-wait", 2, code=4)
    assert time.monotonic() - started < 40
    (folder,) = kept()
    lines = [line for line in outcome.err.splitlines() if "lrrt-stage sync" in line]
    assert len(lines) == 1
    assert str(folder) in lines[0]
    assert "Traceback" not in outcome.err
    assert "final validation loss" in outcome.out

    faulty.answer()
    (run,) = [run for run in store.runs("train") if run.info.run_id != whole.info.run_id]
    assert run.info.status != "FINISHED"
    assert run.info.run_id in sync(store).err
    run = mlflow.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert "lrrt.error" not in run.data.tags
    for metric in ("train_loss", "val_loss", "lr", "val_accuracy"):
        assert store.history(run, metric) == store.history(whole, metric)
    assert store.artifacts(run) == store.artifacts(whole)
    assert run.data.tags.keys() == whole.data.tags.keys()
    assert final_digest(run) == final_digest(whole) == run.data.tags["lrrt.final_weights_sha256"]
    (model,) = run.outputs.model_outputs
    assert mlflow.pytorch.load_model(f"models:/{model.model_id}") is not None


def test_a_short_outage_loses_nothing_and_logs_nothing_twice(store, faulty):
    store.run("train", *EPOCHS)
    whole = store.one("train")
    since: list[float] = []

    def fault(method, path, body):
        if path.endswith("log-batch") and b"train_loss" in body:
            since.append(time.monotonic())
        return "gone" if since and time.monotonic() < since[0] + 1 else None

    faulty.fault = fault
    store.run("train", *EPOCHS)
    run = store.runs("train")[0]
    assert run.info.status == "FINISHED"
    for metric in ("train_loss", "val_loss", "lr"):
        assert store.history(run, metric) == store.history(whole, metric)
    assert kept() == []


def test_an_answer_that_was_lost_logs_nothing_twice(store, faulty):
    store.run("train", *EPOCHS)
    whole = store.one("train")
    lost = faulty.lose_answers("log-batch", 2, b"train_loss")
    store.run("train", *EPOCHS)
    run = store.runs("train")[0]
    assert len(lost) == 2
    assert store.history(run, "train_loss") == store.history(whole, "train_loss")


@pytest.mark.parametrize("path", ["runs/create", "mlflow/logged-models", "model-versions/create"])
def test_what_was_made_without_an_answer_is_not_made_again(store, faulty, path):
    """The first run is that of ``main`` itself; the others are opened while it works."""
    lost = faulty.lose_answers(path, 3)
    options = (*store.SMALL, "--epochs", 2, "--refine", "true", "--trials", 2)
    store.run("main", *options, "--register", "digits")
    assert len(lost) == (3 if path == "runs/create" else 1)
    made = [run.data.tags.get("lrrt.stage") for run in store.runs()]
    assert sorted(made) == ["lrrt", "lrrt", "main", "refine", "train", "trial", "trial"]
    assert {run.info.status for run in store.runs()} == {"FINISHED"}
    client, run = mlflow.MlflowClient(), store.one("train")
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY"
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert len(client.search_model_versions("name = 'digits'")) == 1
    client.delete_registered_model("digits")


def test_a_range_test_of_a_thousand_iterations_makes_ten_requests(store, faulty):
    faulty.requests.clear()
    whole = ("--iterations", 1000, "--lr-end", 1, "--stop-multiple", "none")
    store.run("lrrt", *store.SMALL, *whole)
    made = [path for _, path in faulty.requests]
    run = store.runs("lrrt")[0]
    assert store.history(run, "train_loss")[0][-1] == 999
    uploads = [path for path in made if "mlflow-artifacts" in path]
    assert made[-1].startswith("/api/2.0/mlflow/runs/get")  # what the command shows at its end
    assert len(made[:-1]) - len(uploads) <= 10
    assert sorted(path.rpartition("/")[2] for path in uploads) == sorted(store.artifacts(run))


def test_what_is_refused_is_not_sent_again_after_every_epoch(store, faulty):
    faulty.fault = lambda method, path, body: (
        400 if path.endswith("log-batch") and b"val_accuracy" in body else None
    )
    sent = lambda: sum("log-batch" in path for _, path in faulty.requests)  # noqa: E731
    counts = []
    for epochs in (4, 12):
        before = sent()
        store.run("train", "--epochs", epochs, code=4)
        counts.append(sent() - before)
    # Per epoch one request for what is taken, and one for the refused metric at the end.
    assert counts[1] - counts[0] <= 3 * 8
    faulty.answer()
    sync(store)


def test_what_was_sent_later_is_reused_like_any_other(store, faulty):
    options = (*store.SMALL, "--epochs", 2, "--refine", "true", "--trials", 2, "--data-seed", 3)
    faulty.fail("gone", "", after=40)
    store.run("main", *options, "--max-wait", 1, code=4)
    faulty.answer()
    sync(store)
    made = len(store.runs())
    outcome = store.run("main", *options, "--reuse", "true")
    for step in ("lrrt", "refine", "train"):
        assert f"{step}: reusing run" in outcome.err
    assert len(store.runs()) == made + 1


def test_what_was_opened_without_the_store_is_signed_when_it_is_sent(store, faulty, monkeypatch):
    key = "a key of the tests, 42"
    monkeypatch.setenv("LRRT_SIGNING_KEY", key)
    options = (*store.SMALL, "--epochs", 2, "--data-seed", 5)
    faulty.fail("gone", "runs/create", after=1)
    store.run("main", *options, "--max-wait", 1, code=4)
    faulty.answer()
    unsent = [folder for folder in kept() if "unsent-" in folder.name]
    assert len(unsent) == 2
    monkeypatch.delenv("LRRT_SIGNING_KEY")
    store.run("sync", code=2).names("LRRT_SIGNING_KEY")
    monkeypatch.setenv("LRRT_SIGNING_KEY", "some other key, no 43")
    store.run("sync", code=2).names("LRRT_SIGNING_KEY")
    monkeypatch.setenv("LRRT_SIGNING_KEY", key)
    sync(store)
    main = store.one("main").info.run_id
    assert load_handoff(main, require_signature=True)
    assert source_of(main, require_signature=True)


@pytest.mark.parametrize("path", ["experiments/get-by-name", "runs/create"])
def test_before_the_work_a_store_is_waited_for_no_longer_than_allowed(store, faulty, path):
    faulty.fail(503, path)
    began = time.monotonic()
    options = ("--max-wait", 2, "--experiment", "another")
    store.run("lrrt", *store.SMALL, *options, code=2).names("503")
    assert time.monotonic() - began < 20
    assert record.enclosing_record() is None
    faulty.answer()
    store.run("lrrt", *store.SMALL, *options)
    assert kept() == []


def test_what_a_running_chain_still_holds_is_not_sent_by_anybody_else(store, faulty, monkeypatch):
    options = (*store.SMALL, "--epochs", 40, "--data-seed", 4)
    held = []

    def fault(method, path, body):
        if path.endswith("log-batch") and b"train_loss" in body and b"smoothed" not in body:
            held.append(path)
        return 500 if held else None

    faulty.fault = fault
    chain = start("main", *options, "--max-wait", 1, **{NAME: experiment()})
    until(lambda: held)
    until(lambda: len(kept()) == 3)
    before = {folder: sorted(folder.rglob("*")) for folder in kept()}
    faulty.answer()
    outcome = store.run("sync")
    assert "belong to a process that runs" in outcome.err
    assert {*before} == {*kept()}
    _, err = chain.communicate(timeout=120)
    assert chain.returncode in (0, 4), err
    store.run("sync")
    assert kept() == []
    assert {run.info.status for run in store.runs()} == {"FINISHED"}


@pytest.mark.parametrize(
    "path", ["mlflow-artifacts/artifacts", "log-batch", "logged-models", "runs/update"]
)
def test_an_error_for_good_of_one_kind_of_requests_holds_up_no_other(store, faulty, path):
    store.run("train", *EPOCHS)
    faulty.gone_after_epochs(1, None)
    began = []

    def fault(method, requested, body):
        if requested.endswith("log-batch") and b"train_loss" in body:
            began.append(1)
        return 500 if began and path in requested else None

    faulty.fault = fault
    store.run("train", *EPOCHS, "--max-wait", 1, code=4)
    faulty.answer()
    sync(store)
    new, whole = store.runs("train")
    assert new.info.status == "FINISHED"
    assert store.history(new, "train_loss") == store.history(whole, "train_loss")
    assert store.artifacts(new) == store.artifacts(whole)


def test_a_killed_training_that_the_store_has_never_heard_of_is_resumed(store, faulty):
    def fault(method, path, body):
        tested.append(b"smoothed_loss" in body)
        return "gone" if path.endswith("runs/create") and any(tested) else None

    tested, options = [], ("--epochs", 60)
    faulty.fault = fault
    chosen = {NAME: experiment()}
    training = start("main", *store.SMALL, *options, "--max-wait", 1, **chosen)
    files = until(lambda: next(Path(".lrrt").glob("unsent-*/files/checkpoint.safetensors"), None))
    folder = files.parents[1]
    os.kill(holder(folder / "lock"), signal.SIGKILL)
    training.communicate(timeout=30)
    faulty.answer()
    store.run("train", *options, "--resume", folder.name)
    resumed = store.runs("train")[0]
    assert resumed.info.status == "FINISHED"
    sync(store)
    assert mlflow.get_run(resumed.data.tags["lrrt.resumed_run_id"]).info.status == "KILLED"


def test_a_metric_that_is_refused_ends_no_training(store, faulty):
    faulty.fault = lambda method, path, body: (
        400 if path.endswith("log-batch") and b"val_accuracy" in body else None
    )
    store.run("train", *EPOCHS, code=4)
    run = store.one("train")
    assert "final_weights.safetensors" in store.artifacts(run)
    faulty.answer()
    sync(store)
    assert len(store.history(run, "val_accuracy")[0]) == 4


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_the_chain_goes_on_without_its_server(store, faulty, epochs):
    options = (*store.SMALL, "--epochs", 2, "--refine", "true", "--trials", 2)
    store.run("main", *options)
    whole = store.one("main")
    faulty.gone_after_epochs(1 + epochs)
    store.run("main", *options, "--max-wait", 1, "--seed", 0, code=4)
    assert len(kept()) >= 2
    faulty.answer()
    sync(store)
    run = store.runs("main")[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == whole.data.metrics
    children = store.children(run)
    assert {child.data.tags["lrrt.stage"] for child in children} == {"lrrt", "refine", "train"}
    for name in ("lrrt", "refine", "train"):
        assert run.data.tags[f"lrrt.{name}_run_id"] in {c.info.run_id for c in children}
    (train,) = [c for c in children if c.data.tags["lrrt.stage"] == "train"]
    assert train.data.tags["lrrt.source_run_id"] == run.data.tags["lrrt.lrrt_run_id"]
    (searched,) = [c for c in children if c.data.tags["lrrt.stage"] == "refine"]
    assert {c.info.status for c in [*children, *store.children(searched)]} == {"FINISHED"}
    assert "unsent-" not in str(run.data.tags)
    assert (
        load_handoff(run.info.run_id).weights_sha256
        == load_handoff(whole.info.run_id).weights_sha256
    )


def test_a_range_test_and_a_study_go_on_without_their_server(store, faulty):
    began = []

    def fault(method, path, body):
        began.append(b"smoothed_loss" in body)
        return "gone" if any(began) else None

    faulty.fault = fault
    store.run("lrrt", *store.SMALL, "--max-wait", 1, code=4)
    began.clear()
    study = ("study", *store.SMALL, "--tests", 3, "--workers", 1, "--iterations", 60)
    store.run(*study, "--max-wait", 1, code=4)
    faulty.answer()
    sync(store)
    assert store.runs("study")[0].info.status == "FINISHED"
    assert len(store.children(store.runs("study")[0])) == 3
    assert load_handoff("latest").range.max > 0


def test_what_is_kept_goes_to_no_store_that_only_its_folder_names(
    store, faulty, monkeypatch, tmp_path
):
    faulty.gone_after_epochs(2)
    store.run("train", *EPOCHS, "--max-wait", 1, code=4)
    faulty.answer()
    run = store.one("train")
    address, asked = mlflow.get_tracking_uri(), len(faulty.requests)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/another.db")
    store.run("sync", code=2).names(address, "--tracking-uri")
    assert len(faulty.requests) == asked
    store.run("sync", "--tracking-uri", address)
    assert kept() == []
    mlflow.set_tracking_uri(address)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
