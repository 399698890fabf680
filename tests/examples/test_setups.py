"""Trainings of other kinds than the built-in one, through `main`."""

import pytest

from mlflow_project import load_handoff

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "metric", "options"),
    [
        ("regression", "r2", ["--schedule", "CosineAnnealingLR"]),
        ("segmentation", "iou", []),
        ("fine_tuning", "accuracy", ["--clip-norm", 1]),
    ],
)
def test_a_setup_goes_through_all_steps_and_improves(store, name, metric, options):
    command = ["--setup", f"examples.setups.{name}:setup", "--epochs", 3, *options]
    search = ["--refine", "true", "--trials", 2, "--metric", metric]
    store.run("main", *command, *search, "--device", "cpu")

    main, test, refined, training = map(store.one, ("main", "lrrt", "refine", "train"))
    assert f"val_{metric}" in refined.data.metrics
    assert main.data.params["setup"] == f"examples.setups.{name}:setup"
    assert "dataset" not in main.data.params
    assert main.data.metrics[f"val_{metric}"] == training.data.metrics[f"val_{metric}"]
    assert training.data.tags["lrrt.first_loss_equal"] == "true"
    assert load_handoff(test.info.run_id).task.setup == f"examples.setups.{name}:setup"
    _, losses = store.history(training, "val_loss")
    assert losses[-1] < losses[0]
    # The model of the transformer does not take and return one tensor.
    assert bool(training.outputs.model_outputs) == (name != "fine_tuning")
