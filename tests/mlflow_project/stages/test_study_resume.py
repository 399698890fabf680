"""`study`, cut off: what is kept, and how the same command goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from tests.forked_python import programs

ROOT = Path(__file__).parents[3]
# What a model does depends on the files beside it, so that the options stay the same.
FACTORY = """
import os
import pathlib
import time

import torch
from torch import nn

HERE = pathlib.Path(__file__).parent

class Model(nn.Sequential):
    def forward(self, x):
        if (HERE / "slow").exists():
            (HERE / "pids" / str(os.getpid())).touch()
            if self.seed > 1:
                time.sleep(0.2)
        return super().forward(x)

def make():
    # A model is built under its task's seed.
    seed = torch.initial_seed()
    if (HERE / "interrupt").exists() and seed == 2:
        raise KeyboardInterrupt
    model = Model(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model.seed = seed
    return model
"""
STUDY = (
    "study", "--model", "resumed_factory:make", "--iterations", 60, "--batch-size", 128,
    "--device", "cpu", "--tests", 4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def factory(tmp_path, monkeypatch):
    (tmp_path / "resumed_factory.py").write_text(FACTORY)
    (tmp_path / "pids").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("resumed_factory", None)


@pytest.fixture
def interrupted(store, tmp_path):
    """A study that Ctrl-C ended in its third of four tests."""
    (tmp_path / "interrupt").touch()
    outcome = store.run(*STUDY, "--workers", 1, code=130)
    (tmp_path / "interrupt").unlink()
    assert "Traceback" not in outcome.err
    assert "Interrupted" in outcome.err
    return store.one("study")


def study_csv(store, run):
    return Path(store.file(run, "study.csv")).read_bytes()


def names(store, study):
    """The finished children of a study."""
    children = store.children(study)
    return sorted(each.info.run_name for each in children if each.info.status == "FINISHED")


ALL = [f"test seed {seed}" for seed in range(4)]


def test_an_interrupted_study_keeps_what_it_had_and_the_same_command_runs_the_missing_tests(
    store, interrupted, monkeypatch
):
    assert interrupted.info.status == "KILLED"
    assert names(store, interrupted) == ALL[:2]
    frame = store.csv(interrupted, "study.csv")
    assert list(frame["test"].unique()) == ["seed 0", "seed 1"]
    assert list(store.csv(interrupted, "tests.csv")["test"]) == ["seed 0", "seed 1"]
    assert "report.html" not in store.artifacts(interrupted)

    kept = {run.info.run_id for run in store.runs("test")}
    # The threads of this process, which the tests do not use, make it no other study.
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    outcome = store.run(*STUDY, "--workers", 1)
    monkeypatch.undo()
    assert "2 of 4" in outcome.err
    study = store.runs("study")[0]
    assert study.info.status == "FINISHED"
    assert names(store, study) == ALL
    runs = store.runs("test")
    assert len(runs) == 4
    assert kept < {run.info.run_id for run in runs}

    # One that was not interrupted comes to the same, and takes nothing from one that finished.
    store.run(*STUDY, "--workers", 1)
    whole = store.runs("study")[0]
    assert names(store, whole) == ALL
    assert len(store.runs("test")) == 8
    assert study_csv(store, study) == study_csv(store, whole)
    assert study.data.metrics == whole.data.metrics
    described = "mlflow.note.content"
    assert study.data.tags[described] == whole.data.tags[described]


def test_other_options_take_nothing_and_a_study_is_resumed_by_its_id(store, interrupted):
    """As after a failure of the machine, where the run is left as if it went on."""
    run_id = interrupted.info.run_id
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")
    resume = (*STUDY, "--resume", run_id, "--workers", 1)
    store.run(*resume, "--momentum", 0.8, code=2).names(run_id)
    test = store.runs("test")[0].info.run_id
    store.run(*STUDY, "--resume", test, code=2).names(test, "of stage 'test'", "study")
    assert len(store.runs("test")) == 2

    store.run(*resume)
    assert names(store, store.runs("study")[0]) == ALL
    assert len(store.runs("test")) == 4

    mlflow.MlflowClient().update_run(run_id, status="KILLED")
    store.run(*STUDY, "--workers", 1, "--weight-decay", 0.001)
    assert names(store, store.runs("study")[0]) == ALL
    assert len(store.runs("test")) == 8


def alive(pid):
    try:
        # A zombie has ended; its parent, which is not this process, has yet to look.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", ["SIGTERM to the command", "SIGINT to all, as Ctrl-C"])
def test_a_signal_ends_the_workers_too_and_the_same_command_goes_on(store, tmp_path, how):
    (tmp_path / "slow").touch()
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    outside |= {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PYTHONPATH": path}
    arguments = [str(each) for each in (*STUDY, "--workers", 2, "--experiment", "test")]
    process = subprocess.Popen(
        [programs() / "lrrt-stage", *arguments],
        cwd=tmp_path,
        env=outside,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 90
        while not any(run.info.status == "FINISHED" for run in store.runs("test")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        if how.startswith("SIGTERM"):
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.fullmatch(r"\nInterrupted: \d of 4 .*\n", err), err
    workers = [int(each.name) for each in (tmp_path / "pids").iterdir()]
    assert len(workers) == 3  # the command itself, which checks the model, and two of its own
    deadline = time.monotonic() + 10
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.1)
    killed = store.one("study")
    assert killed.info.status == "KILLED"
    done = names(store, killed)

    (tmp_path / "slow").unlink()
    outcome = store.run(*STUDY, "--workers", 1)
    assert f"{len(done)} of 4" in outcome.err
    assert names(store, store.runs("study")[0]) == ALL
