"""The commands on a tracking server over HTTP; the other tests use a sqlite store."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from mlflow_project import load_handoff
from mlflow_project.tracking import connection
from tests.servers import mlflow_server
from tests.stores import shell

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # searches are stored in its cache folder
    options = ("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db")
    artifacts = ("--artifacts-destination", str(tmp_path / "served"))
    with mlflow_server(*options, *artifacts, folder=tmp_path) as address:
        yield address


def test_the_chain_runs_on_a_server_over_http(store, server):
    options = ("--refine", "true", "--trials", 1, "--epochs", 1, "--tracking-uri", server)
    outcome = store.run("main", *store.SMALL, *options, "--experiment", "served")
    assert server in outcome.out
    parent = store.one("main")
    assert parent.info.status == "FINISHED"
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:")
    assert "summary.png" in store.artifacts(parent)
    assert len(store.history(store.one("train"), "train_loss")[0]) == 11
    handoff = load_handoff(parent.data.tags["lrrt.lrrt_run_id"])
    assert handoff.weights_sha256 == parent.data.tags["lrrt.weights_sha256"]
    # MLflow itself prints addresses of a server's runs.
    options = ("--iterations", 60, "--experiment", "served", "--tracking-uri", server)
    options = (*options, "--output-json", "-")
    found = json.loads(store.run("lrrt", *store.SMALL, *options).out)
    assert found["weights_sha256"] == handoff.weights_sha256
    (logged,) = store.one("train").outputs.model_outputs
    assert mlflow.pytorch.load_model(f"models:/{logged.model_id}") is not None


def test_the_default_is_a_store_in_the_current_folder(store, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # As in a new process.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    outcome = store.run("lrrt", *store.SMALL, "--iterations", 60)
    assert f"sqlite:///{folder}/mlflow.db" in outcome.out
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["lrrt.stage"] == "lrrt"


class AnyPage(BaseHTTPRequestHandler):
    """Answers every request with one page, as what stands before a server does."""

    status, page = 200, ""

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.page.encode())

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("status", "page", "path"),
    [
        (200, "<html>Sign in</html>", ""),
        (401, "", ""),
        (403, "Invalid Host header", ""),
        (404, "", "/#/experiments/1"),
        (501, "", ""),
        (503, "", ""),
    ],
)
def test_a_server_that_is_not_mlflows_is_named_within_seconds(store, status, page, path):
    handler = type("Handler", (AnyPage,), {"status": status, "page": page})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}"
        started = time.monotonic()
        outcome = store.run("lrrt", "--tracking-uri", address + path, code=2)
        other.shutdown()
    assert time.monotonic() - started < 15
    told = ("without", "HTTPS_PROXY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")
    outcome.names(address, page, *told, "--allowed-hosts")


def test_a_server_that_does_not_answer_is_asked_twice(store, monkeypatch):
    """First for the experiment, for a short time, and then for its reason."""
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 2)
    asked, ended = [], threading.Event()

    class Silent(AnyPage):
        def do_POST(self):
            asked.append(self.path)
            ended.wait(20)

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = time.monotonic()
        outcome = store.run(
            "lrrt", "--tracking-uri", f"http://127.0.0.1:{server.server_port}", code=2
        )
        taken = time.monotonic() - started
        ended.set()
        server.shutdown()
    outcome.names(str(server.server_port), "timed out")
    assert len(asked) == 2
    assert 3 <= taken < 8


def test_a_server_behind_a_proxy_is_asked_through_it(store, monkeypatch):
    """The name is known to the proxy alone."""
    asked = []

    class Proxy(AnyPage):
        def do_POST(self):
            asked.append(self.path)
            super().do_GET()

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        store.run("lrrt", "--tracking-uri", "http://inside.invalid:5000", code=2)
        proxy.shutdown()
    assert asked[0].startswith("http://inside.invalid:5000/api/")


@pytest.mark.parametrize(
    "uri",
    [
        "foo://bar",
        "sqlite:////proc/x.db",
        "sqlite:///text.db",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:1",  # where nobody listens
        "http://no-such-host.invalid:5000",
    ],
)
def test_a_store_that_cannot_be_used_is_named_within_seconds(store, uri):
    Path("text.db").write_text("this is no database, and longer than a header " * 30)
    started = time.monotonic()
    outcome = store.run("lrrt", "--tracking-uri", uri, code=2)
    assert time.monotonic() - started < 15
    outcome.names(uri, "MLFLOW_TRACKING_URI")


def test_a_store_in_a_folder_that_is_not_there_is_made(store, tmp_path):
    uri = f"sqlite:///{tmp_path}/some/where/mlflow.db"
    options = ("--iterations", 20, "--rule", "valley", "--experiment", "first")
    store.run("lrrt", *store.SMALL, *options, "--tracking-uri", uri)
    assert (tmp_path / "some" / "where" / "mlflow.db").exists()


@pytest.mark.slow
def test_a_store_that_another_process_is_creating_is_waited_for(tmp_path):
    uri = f"sqlite:///{tmp_path}/fresh.db"
    script = f"from mlflow_project.tracking.connection import connect; connect({uri!r}, None)"
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: shell(tmp_path, "python", "-c", script), range(3)))
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]


@pytest.mark.parametrize("named_by", ["option", "environment"])
def test_an_experiment_that_was_deleted_is_named(store, monkeypatch, named_by):
    deleted = mlflow.create_experiment("gone")
    mlflow.MlflowClient().delete_experiment(deleted)
    options = ("--experiment", "gone") if named_by == "option" else ()
    if named_by == "environment":
        monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    outcome = store.run("lrrt", *options, code=2)
    outcome.names("'gone'")
