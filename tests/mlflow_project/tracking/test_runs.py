import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.store.tracking.dbmodels.models import SqlDataset
from sqlalchemy import event
from sqlalchemy.orm import Session, loading

from mlflow_project.tracking.runs import name_run, stage_run


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("lr-test", True),
        ("nightly", True),
        ("calm-test-3-again", True),
        ("bald-fish-414", False),
        (None, False),  # MLflow makes one up
    ],
)
def test_a_name_is_the_users_unless_mlflow_made_it_up(store, given, kept, monkeypatch):
    run = mlflow.MlflowClient().create_run(
        mlflow.get_experiment_by_name("test").experiment_id, run_name=given
    )
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with stage_run("lrrt"):
        name_run("digits mlp")
    found = mlflow.get_run(run.info.run_id).info.run_name
    assert found == (given if kept else "lrrt digits mlp")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("shapes differ:\n\tmat1 2x3\n  mat2 4x5"),
            "RuntimeError: shapes differ: mat1 2x3 mat2 4x5",
        ),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(store, error, reason):
    with pytest.raises(type(error)) as raised, stage_run("lrrt") as run:
        raise error
    assert raised.value is error
    failed = mlflow.get_run(run.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["lrrt.error"] == reason


@pytest.mark.parametrize("told", [False, True])
def test_interrupted_amid_a_query_the_run_still_ends_as_killed(store, monkeypatch, told):
    read = loading.instances

    def interrupted_once(*args, **kwargs):
        monkeypatch.setattr(loading, "instances", read)
        raise KeyboardInterrupt("terminated")  # between the query and its rows

    with pytest.raises(KeyboardInterrupt), stage_run("lrrt") as run:
        monkeypatch.setattr(loading, "instances", interrupted_once)
        try:
            mlflow.set_tag("mlflow.runName", "renamed")
        except KeyboardInterrupt as interrupt:
            if told:  # as stages do that say how to go on
                raise KeyboardInterrupt(f"{interrupt}") from None
            raise
    killed = mlflow.get_run(run.run_id)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["lrrt.error"] == "terminated"


def opened_by_mlflow_run(entry_point):
    return mlflow.MlflowClient().create_run(
        mlflow.get_experiment_by_name("test").experiment_id,
        tags={"mlflow.project.entryPoint": entry_point},
    )


def test_a_stage_takes_over_the_run_of_the_entry_point_of_its_name(store, monkeypatch):
    run = opened_by_mlflow_run("lrrt")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with stage_run("lrrt") as opened:
        assert opened.run_id == run.info.run_id


def test_inside_another_projects_run_every_stage_is_a_child_of_it(store, monkeypatch):
    outer = opened_by_mlflow_run("nightly")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    # Of one process, as in a script that calls both.
    for stage in ("lrrt", "train"):
        with stage_run(stage) as run:
            assert run.run_id != outer.info.run_id
            with stage_run("test") as inner:
                assert inner.tags["mlflow.parentRunId"] == run.run_id
        assert run.tags["mlflow.parentRunId"] == outer.info.run_id
        assert run.as_run().info.experiment_id == outer.info.experiment_id
    after = mlflow.get_run(outer.info.run_id)
    assert after.info.status == "RUNNING"
    assert "lrrt.stage" not in after.data.tags


def test_a_run_that_a_stage_has_taken_over_is_not_taken_again(store, monkeypatch):
    """Another project's entry point `lrrt` may call the stage twice."""
    outer = opened_by_mlflow_run("lrrt")
    ids = []
    for _ in range(2):
        monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
        with stage_run("lrrt") as run:
            ids.append(run.run_id)
    assert ids[0] == outer.info.run_id != ids[1]
    assert mlflow.get_run(ids[1]).data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_a_nested_stage_is_in_its_parents_experiment(store):
    elsewhere = mlflow.create_experiment("elsewhere")
    with mlflow.start_run(experiment_id=elsewhere), stage_run("lrrt") as run:
        assert run.as_run().info.experiment_id == elsewhere


def test_another_projects_run_is_not_failed_for_a_mistake_in_a_stages_options(store, monkeypatch):
    outer = opened_by_mlflow_run("nightly")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    store.run("lrrt", "--iterations", 3, code=2)
    after = mlflow.get_run(outer.info.run_id)
    assert after.info.status == "RUNNING"
    assert "lrrt.error" not in after.data.tags


@pytest.mark.parametrize("run_id", ["'", "a/b", "x" * 400, "no such run"])
def test_a_run_id_of_the_environment_that_is_none_is_named(store, monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    store.run("lrrt", *store.SMALL, code=2).names("MLFLOW_RUN_ID", run_id[:90])


@pytest.mark.parametrize("there", [True, False])
def test_a_relative_store_of_another_folder_is_named_and_none_is_made(
    store, monkeypatch, there, template
):
    run = opened_by_mlflow_run("lrrt")
    if there:
        shutil.copy(template("empty") / "mlflow.db", "relative.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    outcome = store.run("lrrt", "--tracking-uri", "sqlite:///relative.db", code=2)
    outcome.names(run.info.run_id, "MLFLOW_RUN_ID", "sqlite:///relative.db")
    assert outcome.err.count("\n") == 1
    assert Path("relative.db").exists() == there


def test_a_dataset_that_another_run_logs_meanwhile_is_logged(store):
    dataset = mlflow.data.from_numpy(np.ones((2, 3)), name="photographs")
    others = []

    def log_from_another_run(session, *_):
        if not others and any(isinstance(each, SqlDataset) for each in session.new):
            with mlflow.start_run(nested=True) as other:
                others.append(other.info.run_id)
                mlflow.log_input(dataset, context="training")

    event.listen(Session, "before_flush", log_from_another_run)
    try:
        with stage_run("lrrt") as run:
            run.log_input(dataset)
    finally:
        event.remove(Session, "before_flush", log_from_another_run)
    for run_id in (run.run_id, *others):
        (logged,) = mlflow.get_run(run_id).inputs.dataset_inputs
        assert logged.dataset.name == "photographs"
