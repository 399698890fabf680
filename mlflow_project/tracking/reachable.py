"""Whether a tracking store can be used, and what to do where it cannot."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response
from requests import ConnectionError, Timeout

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords

__all__ = ["require_reachable"]

CONNECT_SECONDS, ANSWER_SECONDS = 5, 20
EXPERIMENTS = "/api/2.0/mlflow/experiments/search"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
UNREACHED = "it cannot be reached"
ADVICE = {
    UNREACHED: "a browser may reach it through a proxy or a tunnel, or from a different machine: "
    "set HTTP_PROXY or HTTPS_PROXY, forward the port, or correct tracking_uri",
    "Invalid Host header": "the server does not know itself by this name: start it with "
    "--allowed-hosts, or use the name that it knows",
    "error code 401": "it asks for a login, which a browser remembers: set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "error code 403": "this login may not use it: set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of one that may",
    "valid JSON": "a web page answered instead of MLflow, such as the login page of a proxy: "
    "give the address of the MLflow server itself, or set MLFLOW_TRACKING_TOKEN",
}
"""Part of an error message -> what to do about it. Most concern servers that a browser shows."""


def require_reachable(uri: str) -> None:
    """Query a store once, within seconds. MLflow itself would retry for minutes.

    Raises
    ------
    LRRTError
        If it cannot be used; the message says why, without passwords, and what to do.
    """
    try:
        if uri.startswith(("http://", "https://")):
            _query_server(uri)
        else:
            _query_database(uri)
    except Exception as error:  # a socket's, a driver's, SQLAlchemy's, MLflow's
        raise LRRTError(
            hide_passwords(
                f"tracking store {uri} cannot be used ({first_line(error)}): {_advice(uri, error)}"
            )
        ) from error


def _query_server(uri: str) -> None:
    try:
        response = http_request(
            get_default_host_creds(uri),
            EXPERIMENTS,
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            raise_on_status=False,
        )
    except Exception as error:
        if not isinstance(error.__context__, ConnectionError | Timeout):
            raise
        raise OSError(f"{UNREACHED}: {_innermost(error)}") from error
    verify_rest_response(response, EXPERIMENTS)


def _innermost(error: BaseException) -> BaseException:
    return error if error.__context__ is None else _innermost(error.__context__)


def _query_database(uri: str) -> None:
    if uri.partition(":")[0].partition("+")[0] in DATABASES:
        engine = create_sqlalchemy_engine(uri)
        file = engine.url.database
        if engine.url.get_backend_name() == "sqlite" and file not in (None, "", ":memory:"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        with engine.connect() as connection:
            engine.dialect.get_table_names(connection)
        engine.dispose()
    mlflow.MlflowClient().search_experiments(max_results=1)


def _advice(uri: str, error: Exception) -> str:
    address, hash_, _ = uri.partition("#")
    if hash_ and address.startswith("http"):
        return f"give {address.rstrip('/')}, without what the browser shows after it"
    for text, advice in ADVICE.items():
        if text in str(error):
            return advice
    return (
        "correct tracking_uri or MLFLOW_TRACKING_URI, which is sqlite:///FILE or http://HOST:PORT"
    )
