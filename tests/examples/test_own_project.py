"""Somebody else's MLflow project that runs the range test on its own model and data."""

import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from torch.nn.functional import cross_entropy

from lrrt_stage import LRRTError
from lrrt_stage.state import weights
from mlflow_project import load_handoff
from pipeline import PreparedTask

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "own_project"
FILES = {
    *("MLproject", "README.md", "python_env.yaml", "train.py"),
    *("tumours", "__init__.py", "data.py", "model.py"),
}


@pytest.fixture(scope="module")
def finished(template):
    """The project's two runs, and the folder that it was started from."""
    folder = template("own_project")
    uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["tumours"], output_format="list")
    (training,) = [run for run in found if run.data.tags["mlflow.project.entryPoint"] == "main"]
    (test,) = [run for run in found if run.data.tags.get("lrrt.stage") == "lrrt"]
    yield SimpleNamespace(
        folder=folder,
        training=training,
        test=test,
        count=len(found),
        handoff=load_handoff(test.info.run_id, trust="tumours"),
    )
    mlflow.set_tracking_uri(uri)


@pytest.fixture
def tumours(monkeypatch):
    """The project's own modules, imported as its script imports them."""
    monkeypatch.syspath_prepend(PROJECT)
    from tumours import data, model

    yield SimpleNamespace(load=data.load, build=model.build)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tumours"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_range_test_is_a_finished_child_of_the_training(finished):
    assert finished.count == 2
    assert finished.training.info.status == finished.test.info.status == "FINISHED"
    assert finished.test.data.tags["mlflow.parentRunId"] == finished.training.info.run_id
    assert finished.training.data.tags["lrrt.source_run_id"] == finished.test.info.run_id
    assert finished.test.data.params["dataset"] == "tumours.data:load"
    assert (
        finished.test.info.run_name == "lrrt tumours.data:load tumours.model:build batch 64 seed 0"
    )


def test_it_trains_at_the_narrowed_range_and_well(finished):
    metrics = finished.training.data.metrics
    client = mlflow.MlflowClient()
    rates = client.get_metric_history(finished.training.info.run_id, "lr")
    assert max(each.value for each in rates) == pytest.approx(finished.handoff.narrowed().max)
    assert metrics["narrowed_lr_max"] == pytest.approx(finished.handoff.narrowed().max)
    assert metrics["val_accuracy"] > 0.9
    assert metrics["val_auc"] > 0.98


def test_it_starts_from_the_weights_of_the_range_test_and_its_first_loss(finished, tumours):
    task = finished.handoff.task
    model = tumours.build(**task.model_args)
    finished.handoff.load_weights(model)
    digest = weights.digest(weights.state_of(model))
    for run in (finished.training, finished.test):
        assert run.data.tags["lrrt.weights_sha256"] == digest

    inputs, labels = next(iter(PreparedTask(task).start(finished.handoff.weights).train_batches))
    loss = cross_entropy(model(inputs), labels).item()
    assert loss == pytest.approx(finished.handoff.curve.loss[0], rel=1e-6)


def test_another_model_is_refused_with_the_first_differences(finished, tumours):
    with pytest.raises(LRRTError) as caught:
        finished.handoff.load_weights(tumours.build(width=32))
    message = str(caught.value)
    assert "\n" not in message
    assert "0.weight" in message
    assert "[32, 30]" in message.replace("(", "[").replace(")", "]")


def test_the_runs_are_where_it_was_started_and_nothing_is_left_in_the_checkout(finished):
    left = {path.name for path in finished.folder.iterdir()}
    assert left - {"done", "artifacts"} == {"mlflow.db", "mlruns"}
    found = {path.name for path in PROJECT.rglob("*") if "__pycache__" not in path.parts}
    assert found == FILES
