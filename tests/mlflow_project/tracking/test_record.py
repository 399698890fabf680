"""The folder of a run: whose it is, what may stand in it, and where it is sent."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from torch import nn

from lrrt_stage import LRRTError
from mlflow_project import load_handoff, track_range_test
from mlflow_project.tracking import outbox, record, runs, store
from mlflow_project.tracking.kept import kept_run, mark_ended
from mlflow_project.tracking.store import PATIENCE
from tests.mlflow_project.stages.test_killed import kept
from tests.stores import shell


def objects():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    batches = [(inputs, (inputs[:, 0] > 0).long())]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), batches


def test_threads_have_runs_of_their_own(store):
    together, errors = threading.Barrier(2), []

    def test(name):
        try:
            with runs.stage_run("outer", name):
                together.wait(30)
                with runs.stage_run("inner", f"{name}'s"):
                    together.wait(30)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=test, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert kept() == []
    made = {run.info.run_name: run for run in store.runs()}
    assert {*made} == {"outer a", "outer b", "inner a's", "inner b's"}
    for name in "ab":
        inner, outer = made[f"inner {name}'s"], made[f"outer {name}"]
        assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert {run.info.status for run in made.values()} == {"FINISHED"}


def test_the_environment_is_as_before_after_requests_of_several_threads():
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)

    def ask(index):
        for _ in range(20):
            with store.limits(1 + index):
                time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.environ.get(name) == before


def test_a_persons_own_work_folder_stays_as_it_is(store, tmp_path):
    own = tmp_path / "work of mine"
    own.mkdir()
    (own / ".gitignore").write_text("*.tmp\n")
    store.run("lrrt", *store.SMALL, "--work-dir", own)
    assert [path.name for path in own.iterdir()] == [".gitignore"]
    assert (own / ".gitignore").read_text() == "*.tmp\n"
    assert not Path(".lrrt").exists()


def test_the_work_folder_is_not_for_version_control_and_goes_with_its_last_run(store):
    with runs.stage_run("lrrt"):
        assert Path(".lrrt/.gitignore").read_text().splitlines()[-1] == "*"
        with runs.stage_run("inner"):
            pass
        assert Path(".lrrt").is_dir()
    assert not Path(".lrrt").exists()


@pytest.fixture
def forged(store):
    """A folder that somebody else has written; returns a function that changes its state."""
    folder = Path(".lrrt/0123")
    (folder / "outbox").mkdir(parents=True)
    (folder / "files").mkdir()
    state = {"run_id": "0123", "experiment_id": "1", "run_name": "", "start_time": 0}
    state |= {"tracking_uri": record.store_uri(), "status": "RUNNING"}

    def write(requests=(), **changes):
        (folder / "run.json").write_text(json.dumps(state | changes))
        for index, request in enumerate(requests):
            (folder / "outbox" / f"{index:06}.json").write_text(json.dumps(request))
        return folder

    return write


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "file", "content": {"name": "../../secret.txt"}},
        {"kind": "file", "content": {"name": "link.txt"}},
        {"kind": "file", "content": {"name": "/etc/hostname"}},
        {"kind": "no such kind", "content": {}},
        {"kind": "log", "content": {"tags": 3}},
        {"kind": "log", "content": [1]},
        {"kind": "model", "content": {}},
        {"no": "kind"},
        [],
    ],
)
def test_a_forged_request_sends_nothing_and_ends_in_one_line(store, forged, request_):
    Path("secret.txt").write_text("nobody's business")
    with mlflow.start_run() as run:
        pass
    folder = forged([request_], run_id=run.info.run_id, experiment_id=run.info.experiment_id)
    (folder / "files" / "link.txt").symlink_to(Path("secret.txt").absolute())
    store.run("sync", folder, code=2).names(".lrrt")
    assert store.artifacts(mlflow.get_run(run.info.run_id)) == set()
    assert folder.is_dir()


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": 3},
        {"run_id": "../../x"},
        {"start_time": "now"},
        {"tags": [1]},
        {"tags": {"a": 1}},
        {"tracking_uri": 3},
        {"status": {}},
        {"surprise": 1},
    ],
)
def test_a_forged_state_is_one_line(store, forged, changes):
    folder = forged(**changes)
    store.run("sync", folder, code=2).names(".lrrt")
    store.run("sync", code=2).names(".lrrt")
    store.run("lrrt", *store.SMALL)
    assert folder.is_dir()


def test_a_long_transfer_to_a_store_of_ones_own_is_interrupted(store, monkeypatch):
    """A database is not interrupted in a transaction, but the files beside it take long."""
    monkeypatch.setattr("mlflow_project.tracking.store.DELAY_SECONDS", 0.3)

    def upload(repository, path, folder=None):
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        # After the first SIGTERM others are ignored, and another file may follow.
        again = threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT])
        again.start()
        try:
            time.sleep(60)
        finally:
            again.cancel()

    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", upload)
    began = time.monotonic()
    try:
        store.run("lrrt", *store.SMALL, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 20
    assert store.one("lrrt").info.status == "KILLED"


@pytest.mark.parametrize("commands_between", [0, 2])
@pytest.mark.parametrize("moment", ["save", "keep_files", "keep", "settle"])
def test_an_interrupt_at_the_end_of_a_run_leaves_no_run_open(
    store, monkeypatch, moment, commands_between
):
    real = getattr(outbox.Outbox, moment)

    def interrupted(self, *arguments, **options):
        if self.state.status != "RUNNING":
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(outbox.Outbox, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            track_range_test(*objects(), probe=None, iterations=30)
    assert record.enclosing_record() is None
    assert mlflow.active_run() is None
    for _ in range(commands_between):
        mark_ended()
        (run,) = store.runs()
        assert run.info.status != "RUNNING"
    store.run("sync")
    assert kept() == []
    (run,) = store.runs()
    assert run.info.status == ("KILLED" if moment == "save" else "FINISHED")
    assert "initial_weights.safetensors" in store.artifacts(run)
    if moment != "save":
        assert load_handoff(run.info.run_id).range.max > 0


def test_where_no_folder_can_be_made_no_run_is_opened(store, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("LRRT_WORK_DIR", str(Path("file").absolute()))
    with pytest.raises(LRRTError, match="LRRT_WORK_DIR"):
        track_range_test(*objects(), probe=None, iterations=30)
    assert mlflow.active_run() is None
    assert record.enclosing_record() is None
    assert store.runs() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_that_is_killed_while_it_opens_a_run_leaves_none_running(store, moment):
    script = f"""
import mlflow, os, signal
from mlflow_project.tracking import runs
real = mlflow.start_run
def killed(*args, **options):
    if {moment == "after"}:
        real(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
mlflow.start_run = killed
with runs.stage_run("lrrt"):
    pass
"""
    chosen = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_NAME": "test"}
    done = shell(Path.cwd(), sys.executable, "-c", script, **chosen)
    assert done.returncode == -signal.SIGKILL
    assert len(kept()) == 1
    store.run("lrrt", *store.SMALL)
    found = [run.info.status for run in store.runs() if "lrrt.fingerprint" not in run.data.tags]
    assert found == (["KILLED"] if moment == "after" else [])
    assert kept() == []


def test_what_a_forged_folder_asks_for_is_not_sent_by_other_commands(store, forged):
    with mlflow.start_run() as run:
        pass
    asked = [{"kind": "log", "content": {"tags": {"forged": "yes"}}}]
    asked += [{"kind": "model", "content": {"register": "production", "metrics": []}}]
    forged(asked, run_id=run.info.run_id, experiment_id=run.info.experiment_id)
    store.run("lrrt", *store.SMALL)
    assert "forged" not in mlflow.get_run(run.info.run_id).data.tags
    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.mark.parametrize("status", ["FINISHED", "RUNNING"])
def test_a_forged_folder_marks_no_run_that_it_does_not_know_or_that_has_ended(
    store, forged, status
):
    client = mlflow.MlflowClient()
    with runs.stage_run("lrrt") as mine:
        pass
    run_id, known = mine.run_id, mine.tags["lrrt.uuid"]
    client.update_run(run_id, status)
    told = {"lrrt.uuid": known if status == "FINISHED" else "0" * 32}
    forged(run_id=run_id, experiment_id=mine.run.info.experiment_id, tags=told)
    mark_ended()
    run = mlflow.get_run(run_id)
    assert run.info.status == status
    assert "lrrt.error" not in run.data.tags
    client.set_terminated(run_id)


def test_a_state_of_any_depth_holds_up_no_other_run(store, forged):
    with mlflow.start_run() as run:
        pass
    good = forged(run_id=run.info.run_id, experiment_id=run.info.experiment_id)
    deep = Path(".lrrt/deep")
    deep.mkdir()
    (deep / "run.json").write_text("[" * 100_000)
    store.run("sync", code=2).names("deep")
    assert not good.exists()


def test_a_run_that_got_its_id_late_is_found_by_it(store, forged):
    folder = forged(run_id="a" * 32)
    assert kept_run("a" * 32) == folder.absolute()
    assert kept_run("b" * 32) is None


def test_an_error_comes_back_when_everything_is_sent(store, monkeypatch):
    def fails(*arguments):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifact", fails)
        with pytest.raises(LRRTError, match="the reason"), runs.stage_run("lrrt") as run:
            (run.begin_work() / "file.txt").write_text("all of it")
            raise LRRTError("the reason")
    assert "not all" in mlflow.get_run(run.run_id).data.tags["lrrt.error"]
    store.run("sync")
    sent = mlflow.get_run(run.run_id)
    assert sent.info.status == "FAILED"
    assert sent.data.tags["lrrt.error"] == "the reason"
    assert store.artifacts(sent) == {"file.txt"}


def test_a_tag_that_was_refused_does_not_come_after_a_newer_one(store, monkeypatch):
    real = outbox.MlflowClient.log_batch

    def refusing(client, run_id, metrics=(), params=(), tags=(), **more):
        if any(tag.value == "old" for tag in tags) and refuses:
            raise MlflowException("no", error_code=PERMISSION_DENIED)
        return real(client, run_id, metrics, params, tags, **more)

    refuses = [True]
    monkeypatch.setattr(outbox.MlflowClient, "log_batch", refusing)
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        run.set_tags({"name": "old", "other": "kept"})
        run.set_tags({"name": "new"})
        refuses.clear()
    tags = mlflow.get_run(run.run_id).data.tags
    assert (tags["name"], tags["other"]) == ("new", "kept")
    assert kept() == []


@pytest.fixture
def batches(monkeypatch):
    """What ``log_batch`` gets, in order: the names of metrics, parameters and tags."""
    real, seen = outbox.MlflowClient.log_batch, []

    def counted(client, run_id, metrics=(), params=(), tags=(), **more):
        seen.append([{each.key for each in kind} for kind in (metrics, params, tags)])
        return real(client, run_id, metrics, params, tags, **more)

    monkeypatch.setattr(outbox.MlflowClient, "log_batch", counted)
    return seen


def test_what_is_logged_before_the_work_and_in_a_bundle_is_one_request_each(store, batches):
    with runs.stage_run("lrrt", "a name") as run:
        run.log_params({"seed": "0"})
        run.set_tags({"lrrt.first": "1"})
        assert batches == []
        run.begin_work()
        ((metrics, params, tags),) = batches
        assert (metrics, params) == (set(), {"seed"})
        assert tags >= {"lrrt.stage", "lrrt.first", "mlflow.runName"}
        with run.bundle():
            run.log_metrics({"loss": 1.0})
            with run.bundle():
                run.set_tags({"lrrt.second": "2"})
            run.log_params({"lr": "0.1"})
            assert len(batches) == 1
        assert batches[1:] == [[{"loss"}, {"lr"}, {"lrrt.second"}]]
        run.log_metrics({"loss": 0.5})
        assert len(batches) == 3
    logged = mlflow.get_run(run.run_id).data
    assert (logged.params["seed"], logged.params["lr"]) == ("0", "0.1")
    assert logged.tags["lrrt.second"] == "2"


def test_what_a_stage_inside_another_logs_before_its_work_is_one_request(store, batches):
    with runs.stage_run("main") as outer:
        outer.begin_work()
        batches.clear()
        with runs.stage_run("lrrt") as run:
            run.log_params({"seed": "0"})
            run.set_tags({"lrrt.first": "1"})
            assert batches == []
            run.begin_work()
            ((_, params, tags),) = batches
            assert (params, "lrrt.first" in tags) == ({"seed"}, True)
        with runs.stage_run("trial"):
            runs.active_record().log_params({"trial": "0"})
            runs.active_record().set_tags({"lrrt.trial_state": "complete"})
        assert len(batches) == 2
    assert kept() == []


def test_a_bundle_is_on_disk_before_it_is_sent(store):
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        with run.bundle():
            run.log_metrics({"loss": 1.0})
            run.set_tags({"name": "value"})
            (path,) = (run.folder / "outbox").glob("*.json")
            content = json.loads(path.read_text())["content"]
            assert (content["tags"], content["metrics"][0][:2]) == ({"name": "value"}, ["loss", 1])


def test_what_a_stage_has_logged_before_an_error_is_sent(store):
    with pytest.raises(LRRTError), runs.stage_run("lrrt") as run:
        run.log_params({"seed": "0"})
        raise LRRTError("before the work")
    with pytest.raises(LRRTError), runs.stage_run("lrrt") as other:
        other.begin_work()
        with other.bundle():
            other.log_metrics({"loss": 1.0})
            raise LRRTError("in a bundle")
    first, second = (mlflow.get_run(each.run_id) for each in (run, other))
    assert first.data.params["seed"] == "0"
    assert first.data.tags["lrrt.error"] == "before the work"
    assert second.data.metrics["loss"] == 1.0
    assert second.data.tags["lrrt.error"] == "in a bundle"


def test_what_is_logged_before_the_work_is_on_disk_and_a_killed_run_has_it(store, capfd):
    script = """
import os, signal
from mlflow_project.tracking import runs
with runs.stage_run("lrrt", "a name") as run:
    run.log_params({"seed": "0"})
    run.set_tags({"lrrt.first": "1"})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    chosen = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_NAME": "test"}
    done = shell(Path.cwd(), sys.executable, "-c", script, **chosen)
    assert done.returncode == -signal.SIGKILL
    mark_ended()
    (run,) = store.runs()
    assert (run.info.status, run.data.params) == ("KILLED", {})
    assert "lrrt-stage sync sends what it had logged" in capfd.readouterr().err.replace("\n", " ")
    store.run("sync")
    sent = store.one("lrrt")
    assert (sent.info.status, sent.data.params) == ("KILLED", {"seed": "0"})
    assert sent.data.tags["lrrt.first"] == "1"
    assert kept() == []


def test_requests_do_not_grow_while_the_store_is_away(store, monkeypatch):
    def away(*arguments, **options):
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(PATIENCE, "seconds", 0)
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        patch.setattr(outbox.MlflowClient, "log_batch", away)
        for step in range(4):
            with run.bundle():
                run.log_series({"loss": [1.0], "lr": [0.1]}, [step])
        for step in range(4):
            run.log_series({"loss": [1.0]}, [step])
        sizes = [len(each.content["metrics"]) for each in run.outbox.requests]
        assert sizes == [2] * 4 + [1] * 4
        run.outbox.requests.clear()


def refuse(patch, *names, code=INVALID_PARAMETER_VALUE):
    """Have the store refuse what has one of these names; return the names of every request."""
    real, seen = outbox.MlflowClient.log_batch, []

    def log_batch(client, run_id, metrics=(), params=(), tags=(), **more):
        seen.append([each.key for each in (*metrics, *params, *tags)])
        if {*names}.intersection(seen[-1]):
            raise MlflowException("no", error_code=code)
        return real(client, run_id, metrics, params, tags, **more)

    patch.setattr(outbox.MlflowClient, "log_batch", log_batch)
    return seen


@pytest.mark.parametrize("bad", ["tag", "param", "metric"])
def test_of_a_bundle_that_is_refused_the_parts_are_sent_that_are_not(store, monkeypatch, bad):
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        refuse(patch, bad)
        with run.bundle():
            run.set_tags({"tag": "1", "good": "2"})
            run.log_params({"param": "0.1", "good": "3"})
            run.log_series({"metric": [1.0, 2.0], "good": [4.0, 5.0]}, [0, 1])
        logged = mlflow.get_run(run.run_id).data
        assert (logged.tags["good"], logged.params["good"]) == ("2", "3")
        assert logged.metrics["good"] == 5.0
        (path,) = (run.folder / "outbox").glob("*.json")
        (names,) = json.loads(path.read_text())["content"].values()
        assert {name[0] if isinstance(name, list) else name for name in names} == {bad}
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    store.run("sync")  # once is enough
    sent = mlflow.get_run(run.run_id)
    assert sent.info.status == "FINISHED"
    assert {
        "tag",
        "param",
        "metric",
    } <= {*sent.data.tags, *sent.data.params, *sent.data.metrics}
    assert kept() == []


def test_a_refusal_of_the_login_is_one_request(store, monkeypatch):
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        with monkeypatch.context() as patch:
            requests = refuse(patch, "lr", code=PERMISSION_DENIED)
            with run.bundle():
                run.log_params({"lr": "0.1", "seed": "0"})
                run.set_tags({"name": "value"})
            assert len(requests) == 1
    assert mlflow.get_run(run.run_id).data.params == {"lr": "0.1", "seed": "0"}


def test_points_that_a_refused_bundle_has_logged_are_not_logged_again(tmp_path, monkeypatch):
    """As in a store of files, which keeps what it took before it found a fault."""
    real = outbox.MlflowClient.log_batch

    def partly(client, run_id, metrics=(), params=(), tags=(), **more):
        if tags and metrics:
            real(client, run_id, metrics)
            raise MlflowException("no", error_code=INVALID_PARAMETER_VALUE)
        seen.extend((each.key, each.step) for each in metrics)
        return real(client, run_id, metrics, params, tags, **more)

    seen = []
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        monkeypatch.setattr(outbox.MlflowClient, "log_batch", partly)
        with run.bundle():
            run.log_series({"loss": [1.0, 2.0]}, [0, 1])
            run.set_tags({"name": "value"})
    assert seen == []
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 2.0)]


def test_what_is_refused_in_every_epoch_is_one_request_at_the_end(store, monkeypatch):
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        refuse(patch, "bad")
        for step in range(5):
            run.log_series({"bad": [float(step)], "good": [1.0]}, [step])
        (kept_back,) = run.outbox.requests
        (path,) = (run.folder / "outbox").glob("*.json")
        assert len(kept_back.content["metrics"]) == 5
        written = json.loads(path.read_text())["content"]["metrics"]
        assert [(name, step) for name, _, _, step in written] == [("bad", n) for n in range(5)]
    store.run("sync")
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "bad")
    assert [(point.step, point.value) for point in history] == [(n, float(n)) for n in range(5)]


def test_one_sync_is_enough_when_the_store_is_busy_at_first(store, monkeypatch):
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        refuse(patch, "bad", "worse")
        run.log_metrics({"good": 1.0})
        run.log_metrics({"bad": 1.0})
        run.log_metrics({"worse": 1.0})
    real, busy = outbox.MlflowClient.log_batch, [True]

    def log_batch(*arguments, **options):
        if busy:
            busy.clear()
            raise MlflowException("busy", error_code=TEMPORARILY_UNAVAILABLE)
        return real(*arguments, **options)

    monkeypatch.setattr(outbox.MlflowClient, "log_batch", log_batch)
    store.run("sync")
    assert {"bad", "worse"} <= {*mlflow.get_run(run.run_id).data.metrics}
    assert kept() == []


@pytest.mark.parametrize("answers", [False, True])
def test_a_finished_run_has_no_error_when_its_first_end_was_lost(store, monkeypatch, answers):
    real = outbox.MlflowClient.set_terminated

    def fails(*arguments, **options):
        if answers:
            real(*arguments, **options)
        raise ConnectionError("Connection aborted")

    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        refuse(patch, "bad")
        patch.setattr(outbox.MlflowClient, "set_terminated", fails)
        patch.setattr(PATIENCE, "_limit", 0)
        run.log_metrics({"bad": 1.0})
    store.run("sync")
    sent = mlflow.get_run(run.run_id)
    assert (sent.info.status, sent.data.metrics["bad"]) == ("FINISHED", 1.0)
    assert "lrrt.error" not in sent.data.tags


def test_a_disk_from_which_nothing_can_be_removed_ends_no_training(store, monkeypatch):
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if path.parent.name == "outbox":
            raise OSError("Read-only file system")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        run.log_metrics({"loss": 1.0})
    sent = mlflow.get_run(run.run_id)
    assert (sent.info.status, sent.data.metrics["loss"]) == ("FINISHED", 1.0)


def test_a_text_like_the_id_of_a_run_that_is_not_sent_is_one(store):
    unsent = outbox.UNSENT + "a" * 32
    with runs.stage_run("lrrt") as run:
        run.log_params({"note": unsent})
        run.begin_work()
        run.set_tags({"lrrt.other": unsent})
    sent = mlflow.get_run(run.run_id)
    assert (sent.data.params["note"], sent.data.tags["lrrt.other"]) == (unsent, unsent)
    assert kept() == []


def test_a_tag_that_names_a_run_that_is_not_sent_holds_nothing_else_back(store, forged):
    unsent = outbox.UNSENT + "a" * 32
    forged().rename(Path(".lrrt", unsent))
    with runs.stage_run("lrrt") as run:
        run.begin_work()
        with run.bundle():
            run.set_tags({"lrrt.other": unsent})
            run.log_metrics({"loss": 1.0})
        run.log_metrics({"later": 2.0})
        logged = mlflow.get_run(run.run_id).data.metrics
        assert (logged["loss"], logged["later"]) == (1.0, 2.0)
        assert [each.content for each in run.outbox.requests] == [{"tags": {"lrrt.other": unsent}}]
        run.outbox.requests.clear()


def test_a_store_that_takes_no_tags_ends_a_stage_before_its_work(store, monkeypatch):
    def fails(*arguments, **options):
        raise MlflowException("read only", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(outbox.MlflowClient, "log_batch", fails)
    worked = []
    refusal = pytest.raises(LRRTError, match="did not take a tag or parameter")
    with refusal, runs.stage_run("lrrt") as run:
        run.begin_work()
        worked.append(1)
    assert not worked
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    assert kept() == []


def test_what_is_refused_before_the_work_is_the_reason_and_nothing_is_kept(store, capfd):
    with pytest.raises(LRRTError, match="bad"), runs.stage_run("lrrt") as run:
        run.log_params({"bad?name": "1", "seed": "0"})
        run.begin_work()
    sent = mlflow.get_run(run.run_id)
    assert sent.info.status == "FAILED"
    assert "did not take a tag or parameter" in sent.data.tags["lrrt.error"]
    assert sent.data.params == {"seed": "0"}
    assert kept() == []
    assert capfd.readouterr().err == ""


def no_space(*arguments, **options):
    raise OSError("no space")


def test_what_a_full_disk_did_not_keep_is_said_to_be_lost(store, monkeypatch, capfd):
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        patch.setattr(outbox.MlflowClient, "log_batch", no_space)
        patch.setattr(outbox, "write_text", no_space)
        run.log_metrics({"loss": 1.0})
    assert "2 requests could not be written" in capfd.readouterr().err.replace("\n", " ")


def test_a_request_that_grows_when_the_disk_is_full_is_said_to_be_lost(store, monkeypatch, capfd):
    with monkeypatch.context() as patch, runs.stage_run("lrrt") as run:
        run.begin_work()
        patch.setattr(outbox.MlflowClient, "log_batch", no_space)
        with run.bundle():
            run.log_metrics({"loss": 1.0})
            patch.setattr(outbox, "write_text", no_space)
            run.log_metrics({"loss": 0.5})
    assert "2 requests could not be written" in capfd.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("link", ["files", "model", "outbox", "files/below", "model/data"])
def test_nothing_behind_a_link_is_sent(store, forged, link):
    secrets = Path("secrets")
    secrets.mkdir()
    (secrets / "id_rsa").write_text("nobody's business")
    with mlflow.start_run() as run:
        pass
    folder = forged(run_id=run.info.run_id, experiment_id=run.info.experiment_id)
    if (folder / link).is_dir():
        (folder / link).rmdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(secrets.absolute())
    store.run("sync", folder, code=2).names(Path(link).name, "link")
    store.run("lrrt", *store.SMALL)
    assert store.artifacts(mlflow.get_run(run.info.run_id)) == set()


def test_a_request_that_was_half_written_is_no_request(store, forged):
    with mlflow.start_run() as run:
        pass
    folder = forged(run_id=run.info.run_id, experiment_id=run.info.experiment_id)
    (folder / "outbox" / ".part-000003.json").write_text('{"kind": "ta')
    store.run("sync", folder)
    assert kept() == []
