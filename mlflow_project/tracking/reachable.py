"""Whether a tracking store can be used, and what to do where it cannot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import mlflow
from mlflow.store.db.utils import create_sqlalchemy_engine
from requests.utils import get_environ_proxies, select_proxy

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords

__all__ = ["require_reachable"]

CONNECT_SECONDS = 5
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
UNREACHED = "it cannot be reached"
ADVICE = {
    UNREACHED: "a browser may reach it through a proxy, a tunnel or from another machine: set "
    "HTTP_PROXY or HTTPS_PROXY here as there, forward the port, or correct tracking_uri",
    "Invalid Host header": "the server does not know itself by this name: start it with "
    "--allowed-hosts, or use the name that it knows",
    "error code 401": "it asks for a login, which a browser remembers: set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "error code 403": "this login may not use it: set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of one that may",
    "valid JSON": "a web page answered in place of MLflow, such as the login page of a proxy, "
    "which a browser has passed: give the address of the MLflow server itself, or a login by "
    "MLFLOW_TRACKING_TOKEN",
}
"""What an error says -> what to do about it: the server may be one that a browser shows."""


def require_reachable(uri: str) -> None:
    """Try a store once, within seconds.

    Raises
    ------
    LRRTError
        If it cannot be used; the message says why, without passwords, and what to do.
    """
    try:
        _probe(uri)
    except Exception as error:  # a socket's, a driver's, SQLAlchemy's, MLflow's
        message = (
            f"tracking store {uri} cannot be used ({first_line(error)}): {_advice(uri, error)}"
        )
        raise LRRTError(hide_passwords(message)) from error


def _advice(uri: str, error: Exception) -> str:
    address, hash_, _ = uri.partition("#")
    if hash_ and address.startswith("http"):
        return f"give {address.rstrip('/')}, without what the browser shows after it"
    for said, advice in ADVICE.items():
        if said in str(error):
            return advice
    return (
        "correct tracking_uri or MLFLOW_TRACKING_URI, which is sqlite:///FILE or http://HOST:PORT"
    )


def _probe(uri: str) -> None:
    """Try once, and soon, what MLflow itself retries for minutes before it says so."""
    parts = urlparse(uri)
    if parts.scheme in ("http", "https"):
        # Through a proxy nothing else than the request itself tells.
        if not select_proxy(uri, get_environ_proxies(uri)):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            try:
                socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
            except OSError as error:
                raise OSError(f"{UNREACHED}: {first_line(error)}") from None
    elif parts.scheme.partition("+")[0] in DATABASES:
        engine = create_sqlalchemy_engine(uri)
        file = engine.url.database
        if engine.url.get_backend_name() == "sqlite" and file not in (None, "", ":memory:"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        with engine.connect() as connection:
            engine.dialect.get_table_names(connection)
        engine.dispose()
    with _one_try():
        mlflow.MlflowClient().search_experiments(max_results=1)


@contextmanager
def _one_try() -> Iterator[None]:
    kept = dict(os.environ)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(4 * CONNECT_SECONDS)
    try:
        yield
    finally:
        for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
            os.environ.pop(name)
            os.environ.update({name: kept[name]} if name in kept else {})
