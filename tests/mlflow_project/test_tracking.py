import mlflow
import pytest
from sqlalchemy.orm import loading

from mlflow_project.tracking import name_run, stage_run


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("lr-test-3", True),
        ("nightly", True),
        ("calm-test-3", True),  # a predicate of MLflow's, and a noun that is not
        ("bald-fish-414", False),
        (None, False),  # MLflow makes one up
    ],
)
def test_a_name_is_the_users_unless_mlflow_made_it_up(store, given, kept, monkeypatch):
    run = mlflow.MlflowClient().create_run(
        mlflow.get_experiment_by_name("test").experiment_id, run_name=given
    )
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with stage_run("lrrt") as opened:
        name_run(opened, "digits mlp")
    found = mlflow.get_run(run.info.run_id).info.run_name
    assert found == (given if kept else "lrrt digits mlp")


def test_the_reason_of_a_failure_is_one_line(store):
    with pytest.raises(RuntimeError), stage_run("lrrt") as run:
        raise RuntimeError("shapes differ:\n\tmat1 2x3\n  mat2 4x5")
    failed = mlflow.get_run(run.info.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["lrrt.error"] == "RuntimeError: shapes differ: mat1 2x3 mat2 4x5"


def test_interrupted_amid_a_query_the_run_still_ends_as_killed(store, monkeypatch):
    read = loading.instances

    def interrupted_once(*args, **kwargs):
        monkeypatch.setattr(loading, "instances", read)
        raise KeyboardInterrupt("terminated")  # between the query and its rows

    with pytest.raises(KeyboardInterrupt), stage_run("lrrt") as run:
        monkeypatch.setattr(loading, "instances", interrupted_once)
        mlflow.set_tag("mlflow.runName", "renamed")
    killed = mlflow.get_run(run.info.run_id)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["lrrt.error"] == "terminated"
