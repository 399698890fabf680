"""The benchmark of MLflow at scale, made small."""

import subprocess
import sys

import pytest
import torch


@pytest.mark.parametrize("how", ["run", "rush"])
def test_clients_that_take_too_long_are_ended(tmp_path, monkeypatch, how):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    from benchmarks.performance.rounds import Settings
    from benchmarks.scale import server

    started = []

    def start(name, command):
        line = [sys.executable, "-c", "import time; time.sleep(60)"]
        started.append(subprocess.Popen(line))
        return started[-1], tmp_path / name

    settings = Settings(tmp_path, device=torch.device("cpu"), threads=1)
    client = server._Client(settings, "http://127.0.0.1:1", "")
    monkeypatch.setattr(server, "LONGEST", 0.1)
    monkeypatch.setattr(client, "start", start)
    monkeypatch.setattr(client, "runs", list)
    with pytest.raises(subprocess.TimeoutExpired):
        client.run("one", ()) if how == "run" else client.rush(3)
    assert len(started) == (1 if how == "run" else 3)
    left = [process for process in started if process.poll() is None]
    for process in left:
        process.kill()
        process.wait()
    assert left == []


@pytest.mark.slow
@pytest.mark.scale
def test_stages_and_clients_are_counted_on_postgresql(tmp_path, monkeypatch):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    from benchmarks.performance.rounds import Settings
    from benchmarks.scale import server

    monkeypatch.setattr(server, "TESTS", 2)
    monkeypatch.setattr(server, "CLIENTS", 2)
    monkeypatch.setattr(server, "SERVER_WORKERS", 1)
    costs, rush = server.measure(Settings(tmp_path, device=torch.device("cpu"), threads=1))
    runs = {each.name: each.added.rows["runs"] for each in costs}
    assert runs == {"lrrt": 1, "train": 1, "study of 2": 3}
    assert all(each.requests > 5 for each in costs)
    assert all(each.added.files > 1e5 for each in costs)
    assert rush.incomplete == []
    assert rush.clients == 2
    assert any(line.startswith("2 clients at once") for line in server.lines(costs, rush))
