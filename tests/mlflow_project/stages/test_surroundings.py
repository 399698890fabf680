"""Machines as they are: odd names, locales and clocks, and places without room or rights."""

import os
import subprocess
import sys
import tempfile

import mlflow
import pytest

from tests.mlflow_project.stages.test_killed import kept
from tests.stores import SMALL, shell

pytestmark = pytest.mark.slow
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0, reason="a file system of its own needs root; others are not asked for it"
)


@pytest.fixture
def mount():
    """Mounts something on a folder, as the command does, until the test has ended."""
    places = []

    def on(place, *arguments):
        place.mkdir(exist_ok=True)
        command = ["mount", *arguments, place]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        places.append(place)
        return place

    yield on
    for place in {*places}:
        subprocess.run(["umount", "-l", place], check=True)


def disk_of(size):
    """The arguments for a file system of this size."""
    return "-t", "tmpfs", "-o", f"size={size}", "none"


def test_names_with_spaces_and_letters_of_all_kinds_in_a_plain_locale(tmp_path):
    """In a process of its own: Python reads the locale when it starts."""
    folder = tmp_path / "Straße mit Leerzeichen" / "実験 'x' #?"
    folder.mkdir(parents=True)
    (folder / "own").mkdir()
    own = ("--work-dir", folder / "Ablage für später", "--experiment", "Versuch α β")
    # In this locale Python takes UTF-8 for names; what it prints is plain, as in some terminals.
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    for options in (("lrrt", *SMALL), ("train", "--epochs", 1)):
        command = map(str, [*options, *own])
        done = shell(folder, sys.executable, "-m", "mlflow_project", *command, **plain)
        assert done.returncode == 0, done.stderr
    assert (folder / "mlflow.db").is_file()


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_changes_nothing(store, monkeypatch, hours):
    store.run("train", "--epochs", 3)
    whole, now = store.one("train"), mlflow.utils.time.get_current_time_millis
    calls = []

    def jumping():
        calls.append(1)
        return now() + (hours * 3_600_000 if len(calls) > 3 else 0)

    for module in ("record", "kept"):
        monkeypatch.setattr(f"mlflow_project.tracking.{module}.get_current_time_millis", jumping)
    store.run("train", "--epochs", 3)
    assert len(calls) > 3
    (run,) = [r for r in store.runs("train") if r.info.run_id != whole.info.run_id]
    assert run.info.status == "FINISHED"
    for metric in ("train_loss", "val_loss", "lr"):
        assert sorted(store.history(run, metric)) == sorted(store.history(whole, metric))
    final = [each.data.tags["lrrt.final_weights_sha256"] for each in (run, whole)]
    assert final[0] == final[1]
    assert kept() == []


@needs_mounts
@pytest.mark.parametrize("what", ["work", "artifacts"])
def test_a_full_disk_is_one_line(store, mount, tmp_path, what):
    disk = mount(tmp_path / "disk", *disk_of("300k"))
    large = ("--model", "mlp", "--model-args", '{"width": 512}', "--device", "cpu")
    if what == "artifacts":
        mlflow.create_experiment("full", disk.as_uri())
        outcome = store.run("lrrt", *large, "--experiment", "full", code=4)
        assert "No space left" in outcome.err
        assert "lrrt-stage sync" in outcome.err
    else:
        outcome = store.run("lrrt", *large, "--work-dir", disk / "work", code=2)
        assert "StorageFull" in outcome.error or "No space left" in outcome.error
        assert store.one("lrrt").info.status == "FAILED"
    assert "Traceback" not in outcome.err
    half = [path for path in disk.rglob("*.safetensors") if path.stat().st_size < 1000]
    assert half == []


@needs_mounts
@pytest.mark.starts_with("lrrt")
def test_a_full_folder_for_temporary_files_is_one_line(store, mount, monkeypatch, tmp_path):
    place = mount(tmp_path / "temporary", *disk_of("8k"))
    (place / "filler").write_bytes(b"x" * 4096)
    # Python looks for a folder that can be written when it starts: this one was filled later.
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    store.run("train", "--epochs", 2, code=2).names("bytes are left", "TMPDIR", place)
    assert store.one("train").info.status == "FAILED"
    assert kept() == []


@needs_mounts
@pytest.mark.parametrize("what", ["store", "artifacts", "work"])
def test_a_place_that_is_read_only_is_one_line_before_the_work(store, mount, tmp_path, what):
    place = tmp_path / "place"
    place.mkdir()
    uri = mlflow.get_tracking_uri()
    options = ["lrrt", *store.SMALL]
    if what == "store":
        uri = f"sqlite:///{place}/read only.db"
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment("test", (tmp_path / "elsewhere").as_uri())
    elif what == "artifacts":
        mlflow.create_experiment("placed", (place / "artifacts").as_uri())
        options += ["--experiment", "placed"]
    else:
        options += ["--work-dir", place / "work"]
    mount(place, "--bind", place)
    mount(place, "-o", "remount,ro,bind")
    outcome = store.run(*options, "--tracking-uri", uri, code=2)
    outcome.names({"store": "read only.db", "artifacts": "artifacts", "work": "work_dir"}[what])
    assert {run.info.status for run in store.runs()} <= {"FAILED"}
    assert kept() == []
