"""The gate: the range test of a baseline again, on the code and the data of today."""

import json
import math
import re
import sys

import mlflow
import pytest
from mlflow import MlflowClient

from lrrt_stage import LRRTError
from mlflow_project import load_handoff
from mlflow_project.stages.options import CheckOptions

# A model and a dataset of the user's own, which change from one day to the next.
PROJECT = """
import torch
from sklearn.datasets import load_digits

def data():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    y = torch.tensor(labels)
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])

class Scaled(torch.nn.Sequential):
    def forward(self, x):
        return GAIN * super().forward(x)

def model():
    return Scaled(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
"""


@pytest.fixture
def trained(store):
    return store.one("train")


@pytest.mark.unabridged
@pytest.mark.starts_with("train")
def test_nothing_changed_fits_to_the_last_bit(store, trained):
    outcome = store.run("check")
    run = store.one("check")
    tags, metrics = run.data.tags, run.data.metrics
    assert (run.info.status, tags["lrrt.fits"]) == ("FINISHED", "true")
    assert tags["lrrt.baseline_run_id"] == trained.info.run_id
    assert metrics["moved_decades"] == 0
    assert metrics["lr_in_use"] == trained.data.metrics["trained_lr_max"]
    # One line with the reason.
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("Fits"))
    assert tags["lrrt.reason"] in line
    assert {"overlay.png", "options.json"} == store.artifacts(run)

    # The range test of today is a child run, and a hand-off like any other.
    today = load_handoff(tags["lrrt.lrrt_run_id"])
    before = load_handoff(trained.data.tags["lrrt.source_run_id"])
    assert today.weights_sha256 == before.weights_sha256
    assert today.curve == before.curve
    child = mlflow.get_run(today.run_id)
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id


@pytest.mark.starts_with("train")
def test_another_batch_size_no_longer_fits_and_the_exit_code_says_so(store, trained, tmp_path):
    out = tmp_path / "check.json"
    outcome = store.run("check", "--batch-size", 8, "--output-json", out, code=3)
    run = store.one("check")
    assert (run.info.status, run.data.tags["lrrt.fits"]) == ("FINISHED", "false")
    assert "No longer fits" in outcome.out
    assert "batch_size: 8" in run.data.tags["mlflow.note.content"]
    found = json.loads(out.read_text())
    assert found["fits"] is False
    assert found["reason"] == run.data.tags["lrrt.reason"]
    assert found["suggested_lr_max"] < found["lr_in_use"]


@pytest.mark.starts_with("train")
@pytest.mark.parametrize("lr", [1e-4, 1.0])
def test_a_given_learning_rate_outside_the_range_does_not_fit(store, trained, lr):
    outcome = store.run("check", "--lr", lr, code=3)
    assert re.search(f"{lr:.3g} .*{'above' if lr > 0.1 else 'below'}", outcome.out)


@pytest.mark.starts_with("train")
def test_the_baseline_is_a_chain_a_range_test_or_a_registered_model(store, trained):
    MlflowClient().set_registered_model_alias("digits", "champion", "1")
    lrrt = trained.data.tags["lrrt.source_run_id"]
    main = store.one("main").info.run_id
    for baseline, named in (
        ("models:/digits@champion", trained.info.run_id),
        (main, trained.info.run_id),
        (lrrt, lrrt),
    ):
        store.run("check", "--baseline", baseline)
        checked = store.runs("check")[0]
        assert checked.data.tags["lrrt.baseline_run_id"] == named
        # Of a range test alone, what its scheduler would go up to: here the same.
        assert checked.data.metrics["lr_in_use"] == trained.data.metrics["trained_lr_max"]


class TestTheUsersCode:
    """What changed is not an option, but the code that the options name."""

    @pytest.fixture
    def change(self, store, tmp_path, monkeypatch):
        """Run a range test as a baseline; return a function that changes the code and checks."""
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("sys.dont_write_bytecode", True)
        module = tmp_path / "their_project.py"
        module.write_text(PROJECT.replace("GAIN", "1.0"))
        task = ("--dataset", "their_project:data", "--model", "their_project:model")
        store.run("lrrt", *task, "--device", "cpu")
        baseline = store.one("lrrt").info.run_id

        def check(gain, code):
            module.write_text(PROJECT.replace("GAIN", gain))
            del sys.modules["their_project"]
            outcome = store.run(
                "check", "--baseline", baseline, "--trust", "their_project", code=code
            )
            return outcome, store.one("check")

        yield check
        sys.modules.pop("their_project", None)

    def test_the_same_fits(self, change):
        _, run = change("1.0", code=0)
        assert run.data.metrics["moved_decades"] == 0

    def test_outputs_of_another_scale_move_the_range(self, change):
        outcome, run = change("10.0", code=3)
        assert "No longer fits" in outcome.out
        assert run.data.metrics["moved_decades"] < -run.data.metrics["allowed_decades"]

    def test_a_model_that_learns_nothing_has_no_range(self, change, store):
        outcome, run = change("0.0", code=3)
        assert (run.info.status, run.data.tags["lrrt.fits"]) == ("FINISHED", "false")
        assert "no suggestion" in outcome.out
        assert "overlay.png" in store.artifacts(run)
        today = mlflow.get_run(run.data.tags["lrrt.lrrt_run_id"])
        assert today.info.status == "FAILED"


@pytest.mark.starts_with("train")
def test_another_rule_does_not_stand_in_for_the_baselines(store, trained):
    # Gradients are clipped to so little that nothing is learned; a rule takes noise for a descent.
    store.run("lrrt", *store.SMALL, "--rule", "article")
    baseline = store.runs("lrrt")[0].info.run_id
    outcome = store.run("check", "--baseline", baseline, "--clip-norm", 1e-12, code=3)
    run = store.one("check")
    assert re.search("no suggestion.*article", outcome.out)
    assert "overlay.png" in store.artifacts(run)
    assert mlflow.get_run(run.data.tags["lrrt.lrrt_run_id"]).info.status == "FINISHED"


@pytest.mark.starts_with("train")
def test_several_tests_of_today_are_their_consensus(store, trained):
    store.run("check", "--tests", 2, "--workers", 1, "--baseline", "models:/digits/1")
    run = store.one("check")
    assert run.data.tags["lrrt.baseline_run_id"] == trained.info.run_id
    today = mlflow.get_run(run.data.tags["lrrt.lrrt_run_id"])
    assert today.data.metrics["consensus_decades"] >= 0
    assert run.data.metrics["suggested_lr_max"] == today.data.metrics["suggested_lr_max"]


def test_a_baseline_of_several_tests_is_compared_with_as_many(store):
    store.run("lrrt", *store.SMALL, "--tests", 2)
    baseline = store.runs("lrrt")[0].info.run_id
    store.run("check", "--baseline", baseline)
    # With one it would have moved: a consensus of two lies lower.
    assert store.one("check").data.metrics["moved_decades"] == 0
    assert (
        load_handoff(store.one("check").data.tags["lrrt.lrrt_run_id"]).consensus_options.tests == 2
    )


@pytest.mark.starts_with("refine")
def test_of_a_refinement_the_learning_rate_is_what_it_found(store):
    refined = store.one("refine")
    store.run("check", "--baseline", refined.info.run_id)
    found = store.one("check").data.metrics["lr_in_use"]
    assert found == refined.data.metrics["refined_lr_max"]


@pytest.mark.starts_with("lrrt")
def test_a_training_of_another_task_than_its_range_tests_is_no_baseline(store):
    store.run("train", "--epochs", 1, "--batch-size", 16, "--allow-mismatch", "true")
    assert store.one("train").data.tags["lrrt.mismatch"].startswith("batch_size: 16")
    store.run("check", code=2).names("batch_size", 16, 128)


@pytest.mark.parametrize("baseline", ["latest", "0" * 32, "models:/none/1", "models:/"])
def test_a_baseline_that_is_not_there_is_one_line(store, baseline):
    store.run("check", "--baseline", baseline, code=2).names(
        "run train" if baseline == "latest" else baseline
    )
    assert not store.runs("check")


def test_a_model_of_another_project_is_no_baseline(store):
    with mlflow.start_run() as other:
        pass
    store.run("check", "--baseline", other.info.run_id, code=2).names("None", "train", "lrrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.inf}, "lr=inf"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(LRRTError, match=message):
        CheckOptions(**options)
