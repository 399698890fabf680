"""Which store and experiment the runs go to, and whether they can be used."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlparse

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords
from mlflow_project.tracking.reachable import require_reachable
from mlflow_project.tracking.tags import STAGE_TAG

__all__ = ["connect", "experiment_id", "project_run"]

RUN_ID, ENTRY_POINT_TAG = "MLFLOW_RUN_ID", "mlflow.project.entryPoint"


def connect(tracking_uri: str | None, experiment: str | None) -> None:
    """Choose store and experiment; inside ``mlflow run``, those of its run.

    Raises
    ------
    LRRTError
        If the store cannot be used or does not answer within a few seconds, or the experiment
        was deleted.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server's addresses would appear in a command's result, which may be read as JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if tracking_uri:
        mlflow.set_tracking_uri(tracking_uri)
    uri = mlflow.get_tracking_uri()
    run_id = os.environ.get(RUN_ID)
    if not (run_id and _is_absent(uri)):
        require_reachable(uri)
    if run_id:
        if not _holds(uri, run_id):
            raise LRRTError(
                f"run {run_id} of {RUN_ID} is not in {hide_passwords(uri)}: mlflow run changes the "
                "folder, and with it the file of a relative path; set MLFLOW_TRACKING_URI to "
                "sqlite:////FULL/PATH/mlflow.db or http://HOST:PORT"
            )
        return
    try:
        if experiment:
            mlflow.set_experiment(experiment)
        found = mlflow.MlflowClient().get_experiment(experiment_id())
    except Exception as error:
        named = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "of the environment")
        raise LRRTError(
            f"experiment {named!r} in {hide_passwords(uri)} cannot be used ({first_line(error)}): "
            "name a different one with --experiment"
        ) from error
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise LRRTError(
            f"experiment {found.name!r} in {hide_passwords(uri)} was deleted: name a different "
            "one with --experiment, or restore it with mlflow experiments restore --experiment-id "
            f"{found.experiment_id}"
        )


def experiment_id() -> str:
    """Return the experiment of the active run, else the one that a new run would go to."""
    run = mlflow.active_run()
    if run is not None:
        return str(run.info.experiment_id)
    run_id = os.environ.get(RUN_ID)
    if run_id:  # `mlflow run` has opened it, and no stage has resumed it yet
        return str(mlflow.MlflowClient().get_run(run_id).info.experiment_id)
    return str(mlflow.tracking.fluent._get_experiment_id())


def project_run(stage: str) -> tuple[str | None, bool]:
    """Return the id of the run that ``mlflow run`` opened, if any, and whether it is the stage's.

    It is if its entry point has the stage's name and no stage has resumed it yet. Otherwise it
    belongs to a different project, whose entry point calls the stage.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id or not _holds(mlflow.get_tracking_uri(), run_id):
        return None, False
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    return run_id, tags.get(ENTRY_POINT_TAG, stage) == stage and STAGE_TAG not in tags


def _is_absent(uri: str) -> bool:
    """Return whether a store is a SQLite file that does not exist, and a query would create it."""
    path = urlparse(uri).path.removeprefix("/")
    return uri.startswith("sqlite:") and bool(path) and not Path(path).exists()


def _holds(uri: str, run_id: str) -> bool:
    if _is_absent(uri):
        return False
    try:
        mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
