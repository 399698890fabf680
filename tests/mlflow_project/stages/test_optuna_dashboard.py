"""Optuna's own pages on the storage of a refinement."""

import json
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.servers import serving

pytest.importorskip("optuna_dashboard")


@pytest.fixture
def ask(store, tmp_path):
    """A function from a path of the dashboard, on a refinement's storage, to its answer."""
    script = Path(sys.prefix) / "bin/optuna-dashboard"
    command = [script, f"sqlite:///{tmp_path}/optuna.db"]
    with serving(command, "/api/studies", tmp_path) as address:

        def answer(path):
            with urllib.request.urlopen(f"{address}{path}", timeout=10) as response:
                return json.load(response)

        yield answer


@pytest.mark.starts_with("refine")
def test_the_dashboard_shows_the_search_that_mlflow_shows(store, ask):
    run = store.one("refine")
    (study,) = ask("/api/studies")["study_summaries"]
    assert study["study_name"] == run.data.params["study_name"]
    trials = ask(f"/api/studies/{study['study_id']}")["trials"]
    children = store.runs("trial")
    assert len(trials) == len(children) == 4
    # A pruned trial has no value.
    assert min(v for each in trials for v in each["values"] or []) == run.data.metrics["val_loss"]
    shown = {float(each["params"][0]["param_external_value"]) for each in trials}
    assert shown == {each.data.metrics["trained_lr_max"] for each in children}
