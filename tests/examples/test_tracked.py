"""Trainings of one's own with a tracked range test as a child run."""

import importlib
from pathlib import Path

import pytest
from torch import nn

from mlflow_project import load_handoff

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def lineage(store):
    """Return the training, and the hand-off of its range test, which is its child."""
    (training,) = [r for r in store.runs() if r.data.tags.get("lrrt.stage") == "own-training"]
    test = store.one("lrrt")
    assert test.data.tags["mlflow.parentRunId"] == training.info.run_id
    assert training.data.tags["lrrt.source_run_id"] == test.info.run_id
    assert training.data.tags["lrrt.weights_sha256"] == test.data.tags["lrrt.weights_sha256"]
    handoff = load_handoff(training.info.run_id)
    assert training.data.metrics["trained_lr_max"] == handoff.narrowed().max
    return training, handoff


def test_a_loop_of_ones_own(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    source = (ROOT / "examples" / "tracked" / "loop.py").read_text("utf-8")
    exec(compile(source.replace('"digits"', '"test"', 1), "loop.py", "exec"), {"__name__": "loop"})

    training, handoff = lineage(store)
    assert training.info.run_name == "digits by a loop"
    assert training.data.metrics["accuracy"] > 0.8
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    handoff.load_weights(model)


def test_the_fit_of_a_lightning_module(store):
    trainer = importlib.import_module("examples.tracked.lightning_module").main()

    training, handoff = lineage(store)
    assert training.data.metrics["accuracy"] > 0.8
    assert handoff.curve.probe_loss is not None
    assert trainer.lightning_module.hparams.lr == handoff.narrowed().max


def test_the_training_of_a_trainer(store):
    trainer = importlib.import_module("examples.tracked.trainer").main()

    _, handoff = lineage(store)
    assert trainer.args.learning_rate == handoff.narrowed().max
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert all(0 <= rate <= handoff.narrowed().max for rate in rates)
    assert trainer.state.log_history[-1]["eval_loss"] < 2


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("[gst]*/[!_]*.py")), ids=str)
def test_an_example_has_at_most_ten_lines_that_belong_to_this_project(path):
    ours = ("pipeline", "mlflow_project", "track_range_test", "Setup", "LRRangeTest", "test.")
    lines = [line for line in path.read_text("utf-8").splitlines() if any(w in line for w in ours)]
    assert 0 < len(lines) <= 10
