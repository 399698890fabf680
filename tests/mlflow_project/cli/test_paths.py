"""Paths in options: found again from any folder, and never below the one that MLflow changes to."""

import shutil

import mlflow
import numpy as np
import pytest
from PIL import Image

from mlflow_project import load_handoff
from mlflow_project.tracking.connection import default_storage
from tests.stores import ROOT, shell

TASK = ("--dataset-args", '{"size": 8}', "--model", "mlp", "--batch-size", 8, "--device", "cpu")
# An option, and what stands before a path in it.
BEFORE = {
    "dataset": "imagefolder:",
    "init": "file:",
    "storage": "sqlite:///",
    "data_dir": "",
    "output_json": "",
}


def make_photos(root, seed=0):
    pixels = np.random.default_rng(seed)
    for name, low, high in (("dark", 0, 120), ("light", 135, 255)):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(20):
            image = pixels.integers(low, high, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def elsewhere(store, tmp_path, monkeypatch):
    """A function that changes to an empty folder."""

    def change():
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return tmp_path / "elsewhere"

    return change


@pytest.fixture
def project_run(store, monkeypatch):
    """The run that ``mlflow run`` opens before it starts a command."""
    run = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    return run.info.run_id


@pytest.mark.parametrize("option", BEFORE)
def test_a_relative_path_is_refused_in_the_projects_folder_of_mlflow_run(
    store, project_run, monkeypatch, option
):
    monkeypatch.chdir(ROOT)
    stage, before = "refine" if option == "storage" else "lrrt", BEFORE[option]
    outcome = store.run(stage, f"--{option}", f"{before}mine", code=2)
    outcome.names(f"{option}='{before}mine'", f"give the full path, {before}$PWD/mine")
    run = mlflow.get_run(project_run)
    assert run.info.status == "FAILED"
    assert "full path" in run.data.tags["lrrt.error"]


def test_in_a_project_of_the_users_own_it_is_one_in_that_folder(store, project_run, elsewhere):
    folder = elsewhere()
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--output-json", "result.json")
    assert (folder / "result.json").exists()


@pytest.mark.slow
def test_mlflow_run_refuses_a_relative_path(store, tmp_path, photos):
    command = ("mlflow", "run", str(ROOT), "-e", "lrrt", "--env-manager", "local")
    options = ("--experiment-name", "test", "-P", "dataset=imagefolder:photos")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = shell(tmp_path, *command, *options, MLFLOW_TRACKING_URI=uri)
    assert done.returncode != 0
    assert "Error: dataset='imagefolder:photos' has a relative path" in done.stderr
    (run,) = store.runs()
    assert run.info.status == "FAILED"
    assert "$PWD/photos" in run.data.tags["lrrt.error"]


def test_a_stage_finds_the_images_of_its_range_test_from_a_different_folder(
    store, photos, elsewhere
):
    store.run("lrrt", "--dataset", "imagefolder:photos", *TASK)
    lrrt = store.one("lrrt")
    assert load_handoff("latest").task.dataset == f"imagefolder:{photos}"
    # The folder is where it is needed, and nowhere that people look.
    assert lrrt.data.params["dataset"] == "imagefolder:photos"
    assert str(photos) not in str(lrrt.inputs.dataset_inputs)
    elsewhere()
    trust = ("--trust", f"imagefolder:{photos}")
    store.run("train", "--epochs", 1, *trust)
    assert store.one("train").info.status == "FINISHED"
    store.run("check", *trust)


def test_the_same_images_in_a_different_folder_are_the_same_task(store, tmp_path, photos):
    store.run("lrrt", "--dataset", "imagefolder:photos", *TASK)
    shutil.move(photos, tmp_path / "moved")
    store.run("train", "--epochs", 1, "--trust", f"imagefolder:{photos}", code=2).names(
        f"no folder {photos}"
    )
    store.run("train", "--epochs", 1, "--dataset", "imagefolder:moved")
    make_photos(tmp_path / "others", seed=1)
    outcome = store.run("train", "--epochs", 1, "--dataset", "imagefolder:others", code=2)
    outcome.names("content of", "others")


def test_the_weights_to_start_from_are_found_by_a_check_from_a_different_folder(
    store, tmp_path, elsewhere
):
    store.run("lrrt", *store.SMALL, "--iterations", 60)
    shutil.copy(store.file(store.one("lrrt"), "initial_weights.safetensors"), "own.safetensors")
    start = ("--init", "file:own.safetensors", "--iterations", 60)
    store.run("lrrt", *store.SMALL, *start)
    assert load_handoff("latest").task.init == f"file:{tmp_path}/own.safetensors"
    elsewhere()
    trust = ("--trust", f"file:{tmp_path}/own.safetensors")
    store.run("check", "--baseline", store.runs("lrrt")[0].info.run_id, *trust)


@pytest.mark.starts_with("lrrt")
def test_a_search_is_stored_beside_mlflows_file_wherever_it_is_started(store, tmp_path, elsewhere):
    folder = elsewhere()
    outcome = store.run("refine", "--trials", 1, "--trial-epochs", 1)
    assert (tmp_path / "optuna.db").exists()
    assert f"sqlite:///{tmp_path}/optuna.db" in outcome.err
    assert not list(folder.iterdir())


def test_with_a_server_it_is_stored_in_the_cache_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:5000")
    assert default_storage() == f"sqlite:///{tmp_path}/home/.cache/lrrt-stage/optuna.db"


def test_a_path_may_begin_with_the_home_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ("--iterations", 60, "--output-json", "~/result.json")
    store.run("lrrt", *store.SMALL, *options)
    assert (tmp_path / "result.json").exists()
