"""`study` where something fails or cannot be used, and its help."""

import json
import sys

import pytest

QUICK = ("--iterations", 60, "--batch-size", 128, "--device", "cpu")
STUDY = ("study", "--model", "mlp", *QUICK)
FACTORY = """
import pathlib
import torch
from torch import nn

def make(raises_for=(), path="", width=16):
    # A model is built under its task's seed.
    if torch.initial_seed() in raises_for or (path and pathlib.Path(path).exists()):
        raise ValueError("an unlucky seed")
    if path:
        pathlib.Path(path).touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "study_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ("study", "--model", "study_factory:make", *QUICK, "--workers", 1)
    sys.modules.pop("study_factory", None)


def test_a_failing_test_is_reported_and_the_study_goes_on(store, factory):
    outcome = store.run(*factory, "--tests", 3, "--model-args", '{"raises_for": [1]}')
    assert "seed 1" in outcome.err
    assert "an unlucky seed" in outcome.err
    assert "Traceback" not in outcome.err
    run = store.one("study")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["failed_tests"] == 1
    assert "1 of 3 tests" in run.data.tags["mlflow.note.content"]
    status = {each.info.run_name: each.info.status for each in store.children(run, "test")}
    assert status == {"test seed 0": "FINISHED", "test seed 1": "FAILED", "test seed 2": "FINISHED"}
    (failed,) = [each for each in store.children(run, "test") if each.info.status == "FAILED"]
    assert "an unlucky seed" in failed.data.tags["lrrt.error"]
    tests = store.csv(run, "tests.csv").set_index("test")
    assert "an unlucky seed" in tests.loc["seed 1", "error"]
    assert tests["lr_max"].isna().tolist() == [False, True, False]
    assert set(store.csv(run, "study.csv")["test"]) == {"seed 0", "seed 2"}


def test_a_study_of_failing_tests_alone_fails_with_one_line(store, tmp_path, factory):
    # A model is made once to check it, before any test starts; then none can be made.
    arguments = {"path": str(tmp_path / "made")}
    options = ("--tests", 2, "--model-args", json.dumps(arguments))
    message = store.run(*factory, *options, code=2).error
    run = store.one("study")
    assert run.info.status == "FAILED"
    assert run.data.tags["lrrt.error"] in message
    assert [each.info.status for each in store.children(run, "test")] == ["FAILED"] * 2
    assert store.csv(run, "tests.csv")["error"].str.contains("an unlucky seed").all()
    assert "report.html" not in store.artifacts(run)


def test_training_refuses_a_test_without_a_range_in_one_line(store):
    # Up to 1e-6 nothing is learned, so that no rule has an answer.
    flat = ("--lr-start", 1e-8, "--lr-end", 1e-6, "--tests", 2, "--workers", 1)
    store.run(*STUDY, *flat, code=2)
    child = store.runs("test")[0]
    assert child.info.status == "FINISHED"
    assert "suggested_lr_max" not in child.data.metrics
    outcome = store.run("train", "--lrrt-run-id", child.info.run_id, code=2)
    outcome.names(child.info.run_id, "robust")


BEFORE_A_RUN = {
    "no test": (("--tests", 0), ["tests=0"]),
    "workers": (("--workers", 0), ["workers=0"]),
    "kind": (("--kind", "data-oder"), ["data-oder", "'data-order'"]),
}
IN_A_RUN = {
    "one test": (("--tests", 1), ["tests=1", "initializations"]),
    "batch size": (("--kind", "batch-size", "--batch-sizes", "64,2000"), ["2000", "1437"]),
    "batch sizes": (("--kind", "batch-size", "--batch-sizes", "a,b"), ["a,b"]),
    "betas": (("--kind", "smoothing", "--betas", "0.9,1"), ["beta=1.0"]),
    "init": (("--init", "run:abc"), ["run:abc"]),
    "same weights": (("--init", "file:w.safetensors"), ["file:", "w.safetensors"]),
    "resume": (("--resume", "nonesuch"), ["nonesuch"]),
}


@pytest.mark.parametrize("case", [*BEFORE_A_RUN, *IN_A_RUN])
def test_input_that_cannot_be_used_ends_before_any_test_starts(store, case):
    options, words = (BEFORE_A_RUN | IN_A_RUN)[case]
    outcome = store.run(*STUDY, *options, code=2)
    outcome.names(*words)
    runs = store.runs()
    assert len(runs) == (case in IN_A_RUN)
    for run in runs:
        assert (run.info.status, run.data.tags["lrrt.stage"]) == ("FAILED", "study")
        assert run.data.tags["lrrt.error"] in outcome.error
        assert store.artifacts(run) <= {"options.json"}


def test_no_two_ranges_that_differ_end_mismatch_before_any_training(store):
    # Up to 1e-6 nothing is learned: no test has a range.
    flat = ("--lr-start", 1e-8, "--lr-end", 1e-6, "--tests", 2, "--workers", 1)
    store.run(*STUDY, "--kind", "mismatch", *flat, code=2).names("0 of 2")
    run = store.one("study")
    assert run.info.status == "FAILED"
    assert not store.runs("training")
    assert {"study.csv", "tests.csv"} <= store.artifacts(run)


@pytest.mark.unabridged
def test_a_study_without_any_suggestion_shows_its_curves(store):
    options = ("--tests", 2, "--iterations", 40, "--lr-end", 1e-5, "--workers", 1)
    outcome = store.run("study", *store.SMALL, *options, code=2)
    outcome.names("0 of 2", "suggestion")
    assert {"curves.png", "study.csv", "tests.csv"} <= store.artifacts(store.one("study"))
