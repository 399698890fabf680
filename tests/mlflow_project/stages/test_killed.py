"""Processes that are killed, and interrupted ones whose store is away: what they had is found."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest

from lrrt_stage import digest
from lrrt_stage.state import weights
from tests.forked_python import programs
from tests.stores import ROOT, search_path

pytestmark = pytest.mark.slow
EPOCHS = ("--epochs", 60)
CHECKPOINT = "files/checkpoint.safetensors"


def start(*arguments, program=None, **variables):
    """Start a command in the current folder, on the store of the test.

    The ``program`` is a fork that has the imports already, by default.
    """
    environment = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_NAME": "test",
        **os.environ,
        **{"PATH": search_path(), "OMP_NUM_THREADS": "1"},
        **variables,
    }
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # which MLflow sets beside the name
    command = [*(program or [programs() / "lrrt-stage"]), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def until(found, seconds=60):
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def checkpoint():
    return next(Path(".lrrt").glob(f"*/{CHECKPOINT}"), None)


def kept(folder="."):
    """The folders of runs that are kept on disk."""
    return sorted(path.parent for path in Path(folder, ".lrrt").glob("*/run.json"))


def holder(path):
    """The process that has a file open."""
    wanted = str(Path(path).absolute())
    for number in filter(str.isdigit, os.listdir("/proc")):
        # Processes end, and files are closed, while they are looked at.
        with suppress(OSError):
            for opened in os.listdir(f"/proc/{number}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{number}/fd/{opened}") == wanted:
                        return int(number)
    return None


@pytest.fixture
def killed(store):
    """A training that was killed after a few epochs; its id."""
    training = start("train", *EPOCHS)
    path = until(checkpoint)
    folder = path.parents[1]
    os.kill(holder(folder / "lock"), signal.SIGKILL)
    training.communicate(timeout=30)
    assert mlflow.get_run(folder.name).info.status == "RUNNING"
    return folder.name


def final(run):
    return run.data.tags["lrrt.final_weights_sha256"]


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("way", ["id", "folder", "sent"])
def test_a_killed_training_is_marked_and_resumed_to_the_same_weights(store, killed, way):
    store.run("train", *EPOCHS)
    whole = store.runs("train")[0]
    marked = mlflow.get_run(killed)
    assert marked.info.status == "KILLED"
    assert "killed" in marked.data.tags["lrrt.error"]
    if way == "sent":
        store.run("sync")
        assert kept() == []
        assert "checkpoint.safetensors" in store.artifacts(marked)
    name = f".lrrt/{killed}" if way == "folder" else killed
    store.run("train", *EPOCHS, "--resume", name)
    resumed = store.runs("train")[0]
    assert resumed.data.tags["lrrt.resumed_run_id"] == killed
    assert final(resumed) == final(whole)
    for metric in ("train_loss", "val_loss", "lr"):
        assert store.history(resumed, metric) == store.history(whole, metric)
    saved = weights.load(store.file(resumed, "final_weights.safetensors"))
    assert digest(saved) == final(resumed)
    store.run("sync")  # what it was about to send when it was killed
    assert kept() == []


@pytest.mark.starts_with("lrrt")
def test_the_next_command_says_what_was_killed_and_how_to_go_on(store, killed):
    outcome = store.run("compare", "latest", "latest", code=2)
    (line,) = [line for line in outcome.err.splitlines() if killed in line and "killed" in line]
    assert f"--resume {killed}" in line
    assert "killed" not in store.run("compare", "latest", "latest", code=2).err


@pytest.mark.starts_with("lrrt")
def test_a_training_whose_process_is_there_is_neither_marked_nor_resumed(store):
    training = start("train", *EPOCHS)
    try:
        run_id = until(checkpoint).parents[1].name
        outcome = store.run("train", *EPOCHS, "--resume", run_id, code=2)
        outcome.names(run_id, "in use")
        assert mlflow.get_run(run_id).info.status == "RUNNING"
        assert training.poll() is None
    finally:
        training.send_signal(signal.SIGINT)
        training.communicate(timeout=60)


def test_the_workers_of_a_killed_study_end_with_it(store):
    # Forks are children of another process than the one that starts them.
    program = [Path(sys.prefix) / "bin" / "python", "-m", "mlflow_project"]
    options = ("--tests", 40, "--workers", 2, "--iterations", 400)
    study = start("study", *store.SMALL, *options, program=program, PYTHONPATH=str(ROOT))
    parent = until(lambda: next(filter(None, map(holder, Path(".lrrt").glob("*/lock"))), None))

    def line_of(process):
        with suppress(OSError):  # it has just ended
            return Path(f"/proc/{process}/cmdline").read_text()
        return ""

    def workers():
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(each) for each in children if "popen_loky" in line_of(each)]

    found = until(lambda: len(workers()) == 2 and workers())
    os.kill(parent, signal.SIGKILL)
    study.wait(30)
    until(lambda: not any(Path(f"/proc/{each}").exists() for each in found), 10)
    study.communicate(timeout=30)


@pytest.mark.starts_with("lrrt")
def test_two_processes_resume_or_train_at_once_to_the_same_weights(store, killed):
    store.run("train", *EPOCHS)
    whole = store.runs("train")[0]
    options = [("--resume", killed), ("--resume", killed), ()]
    together = [start("train", *EPOCHS, *more) for more in options]
    ends = [(each.communicate(timeout=120)[1], each.returncode) for each in together]
    for err, code in ends:
        assert code == 0 or (code == 2 and "in use" in err), err
    assert ends[2][1] == 0
    assert 0 in (ends[0][1], ends[1][1])
    # All but the first two, the newest of which come first.
    finished = [run for run in store.runs("train")[:-2] if run.info.status == "FINISHED"]
    assert len(finished) == [code for _, code in ends].count(0)
    assert {final(run) for run in finished} == {final(whole)}
    store.run("sync")
    assert kept() == []
