"""Which store and experiment the runs go to, and whether they can be used."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response
from sqlalchemy.engine import make_url

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.files import expanded
from lrrt_stage.settings import hide_passwords, require
from mlflow_project.tracking.environment import RUN_ID
from mlflow_project.tracking.store import PATIENCE, ask, limits
from pipeline.task.tasks import CACHE

__all__ = [
    "connect",
    "default_storage",
    "experiment_id",
    "known_experiment",
    "project_run",
    "store_uri",
]

CONNECT_SECONDS, ANSWER_SECONDS = 5, 20
EXPERIMENTS = "/api/2.0/mlflow/experiments/search"
ADVICE = "correct tracking_uri or MLFLOW_TRACKING_URI, which is sqlite:///FILE or http://HOST:PORT"
SERVER_ADVICE = (
    " without what a browser shows after it; a server behind a proxy needs HTTP_PROXY or "
    "HTTPS_PROXY, one with a login needs MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or "
    "MLFLOW_TRACKING_TOKEN, and one that refuses its name is started with --allowed-hosts"
)


def connect(tracking_uri: str | None, experiment: str | None) -> None:
    """Choose store and experiment; inside ``mlflow run``, those of its run."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server's addresses would appear in a command's result, which may be read as JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if tracking_uri:
        mlflow.set_tracking_uri(tracking_uri)
    uri = mlflow.get_tracking_uri()
    run_id = os.environ.get(RUN_ID)
    if run_id:
        if not _is_absent(uri):
            _require_reachable(uri)
        if ask(project_run) is None:
            raise LRRTError(
                f"run {run_id} of {RUN_ID} is not in {uri}: mlflow run changes the "
                "folder, and with it the file of a relative path; set MLFLOW_TRACKING_URI to "
                "sqlite:////FULL/PATH/mlflow.db or http://HOST:PORT"
            )
        return
    found = None
    if _is_server(uri):
        # No request more than that, if all is well. A silent server is not waited for twice as
        # long: the next one has more time, and says what is wrong.
        with suppress(Exception), limits(CONNECT_SECONDS):
            found = _open_experiment(experiment)
    if found is None:
        _require_reachable(uri)
    try:
        if found is None:
            found = _opened(experiment)
        require(found.lifecycle_stage == LifecycleStage.ACTIVE, "it was deleted")
    except Exception as error:
        named = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "of the environment")
        raise LRRTError(
            f"experiment {named!r} in {uri} cannot be used ({first_line(error)}): "
            "name a different one with --experiment, or restore a deleted one"
        ) from error
    _experiments[uri, found.experiment_id] = found


def _opened(name: str | None) -> Experiment:
    """Return an experiment as soon as the store answers."""
    asked = partial(_open_experiment, name)
    try:
        return ask(asked)
    except MlflowException:
        # Another process may have made it between MLflow's query and its insertion.
        return ask(asked)


def _open_experiment(name: str | None) -> Experiment:
    """Return an experiment, which is made if it is not there, and is the one of new runs."""
    if not name:
        return mlflow.get_experiment(experiment_id())
    found = mlflow.set_experiment(name)
    if experiment_id() != found.experiment_id:
        # Another process has made it at the same time, and MLflow has not chosen it.
        mlflow.set_experiment(experiment_id=found.experiment_id)
    return found


_experiments: dict[tuple[str, str], Experiment] = {}
"""Store and id of an experiment -> what this process first saw of it, with the tags it has set."""


def known_experiment(experiment_id: str) -> Experiment:
    """Return an experiment, which is looked up once; add the tags that are set later."""
    place = mlflow.get_tracking_uri(), experiment_id
    if place not in _experiments:
        _experiments[place] = PATIENCE.attempt(lambda: mlflow.get_experiment(experiment_id))
    return _experiments[place]


def experiment_id() -> str:
    """Return the experiment of the active run, else the one that a new run would go to."""
    run = mlflow.active_run() or project_run()
    if run is not None:
        return str(run.info.experiment_id)
    return str(mlflow.tracking.fluent._get_experiment_id())


def project_run() -> Run | None:
    """Return the run that ``mlflow run`` opened, if the store has it; None inside a stage's run."""
    run_id = os.environ.get(RUN_ID)
    if not run_id or _is_absent(mlflow.get_tracking_uri()):
        return None
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def default_storage() -> str:
    """Return where searches are stored: ``LRRT_STORAGE``, or beside MLflow's SQLite file.

    Where MLflow's store is none, they are in the cache folder.
    The current folder may be a clone that ``mlflow run`` made, and that nobody looks into.
    """
    if given := os.environ.get("LRRT_STORAGE"):
        return given
    file = _sqlite_file(mlflow.get_tracking_uri())
    folder = Path(file).absolute().parent if file else expanded(CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'optuna.db'}"


def store_uri() -> str:
    """Return the tracking store as it is kept on disk: without a login, the same anywhere."""
    uri = hide_passwords(mlflow.get_tracking_uri())
    if file := _sqlite_file(uri):
        return str(make_url(uri).set(database=str(Path(file).resolve())))
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _sqlite_file(uri: str) -> str:
    """Return the file of a store that is one; empty for others. In its address it is quoted."""
    database = (make_url(uri).database or "") if uri.startswith("sqlite:") else ""
    return "" if database == ":memory:" else database


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _is_absent(uri: str) -> bool:
    """Return whether a store is a SQLite file that does not exist, and a query would create it."""
    file = _sqlite_file(uri)
    return bool(file) and not Path(file).exists()


def _require_reachable(uri: str) -> None:
    """Query a store once, within seconds. MLflow itself would retry for minutes."""
    is_server = _is_server(uri)
    try:
        if is_server:
            _query_server(uri)
        else:
            _query_database(uri)
    except Exception as error:  # a socket's, a driver's, SQLAlchemy's, MLflow's
        advice = ADVICE + SERVER_ADVICE if is_server else ADVICE
        raise LRRTError(
            f"tracking store {uri} cannot be used ({first_line(error)}): {advice}"
        ) from error


def _query_server(uri: str) -> None:
    response = http_request(
        get_default_host_creds(uri),
        EXPERIMENTS,
        "POST",
        json={"max_results": 1},
        max_retries=0,
        timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
        raise_on_status=False,
    )
    verify_rest_response(response, EXPERIMENTS)


def _query_database(uri: str) -> None:
    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        # With it comes Alembic, which a client of a server does not need.
        from mlflow.store.db.utils import _safe_initialize_tables, create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(uri)
        file = engine.url.database
        if engine.url.get_backend_name() == "sqlite" and file not in (None, "", ":memory:"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        _safe_initialize_tables(engine)  # waits for another process that creates them
        engine.dispose()
    mlflow.MlflowClient().search_experiments(max_results=1)
