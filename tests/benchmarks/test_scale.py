"""The benchmark of MLflow at scale, made small."""

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.scale]


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
