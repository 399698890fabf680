"""Setups of the user's own through every stage, as runs."""

from __future__ import annotations

import json

import pytest

SOURCE = """
import itertools
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pipeline import Setup

x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
y = x[:, :4].sum(1, keepdim=True).tanh()


def mae(output, target):
    return (output - target).abs().mean()


def setup(width=16, batch_size=32, validate=True, **more):
    if Path("stop").exists() and torch.initial_seed() == 2:
        raise KeyboardInterrupt
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))
    val = DataLoader(TensorDataset(x[256:], y[256:]), 64) if validate else None
    made = dict(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        train_batches=DataLoader(TensorDataset(x[:256], y[:256]), batch_size, shuffle=True),
        val_batches=val,
        loss_fn=nn.MSELoss(),
        metrics={"mae": (mae, "min")},
    )
    return Setup(**made | more)


def fixed():
    made = setup()
    for parameter in made.model.parameters():
        nn.init.constant_(parameter, 0.1)
    return made


def diverges():
    return setup(loss_fn=lambda output, target: (output - target).square().mean() / 0)


def no_direction():
    return setup(metrics={"mae": mae})


def not_a_setup(**arguments):
    return nn.Linear(2, 2)


def several_numbers():
    return setup(metrics={"mae": (lambda output, target: output, "min")})


def deployed_alone():
    return setup(deployed=lambda model: model)


def deployed_damaged():
    return setup(deployed=lambda model: 1 / 0)


def exits():
    return setup(loss_fn=lambda output, target: exit(3))


CALLS = itertools.count(1)


def second_call(output, target):
    if next(CALLS) == 2:
        raise OSError("the file is gone")
    return mae(output, target)


def fails_in_a_trial():
    return setup(metrics={"mae": (second_call, "min")})
"""
SETUP = ("--setup", "mine_for_tests:setup", "--device", "cpu")


@pytest.fixture(autouse=True)
def module(store, tmp_path, monkeypatch):
    import sys

    (tmp_path / "mine_for_tests.py").write_text(SOURCE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_for_tests", None)


def test_every_stage_takes_a_setup_from_the_range_test_on(store):
    store.run("lrrt", *SETUP, "--setup-args", '{"width": 8}', "--tests", 3, "--workers", 1)
    test = store.one("lrrt")
    assert test.info.run_name == "lrrt mine_for_tests:setup seed 0"
    params = test.data.params
    assert (params["setup"], params["setup_args.width"]) == ("mine_for_tests:setup", "8")
    assert (params["init"], params["data_seed"]) == ("own", "0")
    assert not {"dataset", "model", "optimizer", "batch_size"} & params.keys()
    (logged,) = test.inputs.dataset_inputs
    assert logged.dataset.name == "mine_for_tests:setup"

    store.run("refine", *SETUP[:2], "--trials", 2, "--metric", "mae", "--device", "cpu")
    refined = store.one("refine")
    assert refined.data.metrics["val_mae"] > 0
    done = store.run(
        *("train", *SETUP[:2], "--epochs", 3, "--refine-run-id", "latest", "--register", "mine"),
        *("--schedule", "LinearLR", "--schedule-args", '{"end_factor": 0.1}'),
        *("--output-json", "-", "--device", "cpu"),
    )
    trained = store.one("train")
    assert trained.data.tags["lrrt.first_loss_equal"] == "true"
    assert json.loads(done.out)["val_mae"] == trained.data.metrics["val_mae"]
    assert json.loads(done.out)["model"] == "models:/mine/1"
    steps, values = store.history(trained, "val_mae")
    assert (len(values), steps[-1]) == (3, 24)
    baseline = ("--baseline", "models:/mine/1", "--workers", 1, "--trust", "mine_for_tests")
    checked = store.run("check", *baseline, "--device", "cpu")
    assert "Fits: " in checked.out


def test_equal_setups_are_reused_and_others_are_not(store):
    short = ("--epochs", 1, "--reuse", "true")
    store.run("main", *SETUP, *short)
    again = store.run("main", *SETUP, *short)
    assert "lrrt: reusing" in again.err
    other = store.run("main", *SETUP, *short, "--setup-args", '{"width": 4}')
    assert "reusing" not in other.err
    main = store.runs("main")[0]
    assert main.data.metrics["val_mae"] > 0
    assert "mae" in main.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("data-order", ["--tests", 2]),
        ("batch-size", ["--tests", 1, "--batch-sizes", "16,32"]),
        ("mismatch", ["--tests", 2, "--epochs", 1]),
    ],
)
def test_studies_take_a_setup(store, kind, options):
    small = ("--workers", 1, "--iterations", 60)
    store.run("study", *SETUP, "--kind", kind, *options, *small)

    study = store.one("study")
    assert study.data.metrics["failed_tests"] == 0
    assert "setup mine_for_tests:setup" in store.file(study, "report.html").read_text("utf-8")
    if kind == "batch-size":
        assert {run.data.params["batch_size"] for run in store.runs("test")} == {"16", "32"}


def test_an_interrupted_study_of_a_setup_continues_with_the_missing_tests(store, tmp_path):
    study = ("study", *SETUP, "--tests", 3, "--workers", 1, "--iterations", 60)
    stop = tmp_path / "stop"
    stop.touch()
    store.run(*study, code=130)
    stop.unlink()
    assert "2 of 3" in store.run(*study).err
    assert len(store.runs("test")) == 3


def test_seeds_that_change_no_weights_are_told(store):
    options = ("--kind", "initializations", "--tests", 2, "--workers", 1, "--iterations", 60)
    drawn = store.run("study", *SETUP, *options)
    assert "same initial weights" not in drawn.err
    fixed = store.run("study", "--setup", "mine_for_tests:fixed", "--device", "cpu", *options)
    assert "2 seeds gave the same initial weights" in fixed.err


def test_without_validation_a_training_is_possible_and_a_search_is_not(store):
    arguments = ("--setup-args", '{"validate": false}')
    done = store.run("main", *SETUP, *arguments, "--epochs", 2)
    assert "(training loss)" in done.out
    assert not [name for name in store.one("train").data.metrics if name.startswith("val_")]
    store.run("main", *SETUP, *arguments, "--refine", "true", code=2).names(
        "no val_batches", "refine"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--setup", "mine_for_tests:nothing"], ["no function or class 'nothing'", "setup"]),
        (["--setup", "missing_for_tests:setup"], ["cannot be imported", "PYTHONPATH"]),
        (["--setup", "mine_for_tests:not_a_setup"], ["returned Linear", "pipeline.Setup"]),
        (["--setup", "mine_for_tests:no_direction"], ["metric 'mae'", '"max" or "min"']),
        (["--setup", "mine_for_tests:diverges"], ["first batch is", "initial weights"]),
        ([*SETUP, "--setup-args", '{"widht": 3}'], ["widht", "setup_args"]),
        ([*SETUP, "--setup-args", "{width: 3}"], ["is not a JSON object"]),
    ],
)
def test_a_setup_that_cannot_be_used_is_one_line_and_a_failed_run(store, options, words):
    store.run("lrrt", *options, code=2).names(*words)
    for run in store.runs():
        assert run.info.status == "FAILED"
        assert run.data.tags["lrrt.error"]


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("several_numbers", ["metric 'mae'", "return one number"]),
        ("deployed_alone", ["deployed returned Sequential", "example"]),
        ("deployed_damaged", ["ZeroDivisionError", "mine_for_tests.py"]),
    ],
)
def test_what_a_later_step_needs_is_checked_before_the_first(store, factory, words):
    setup = f"mine_for_tests:{factory}"
    store.run("main", "--setup", setup, "--device", "cpu", code=2).names(setup, *words)
    (run,) = store.runs()
    assert run.info.status == "FAILED"


def test_code_that_exits_fails_the_run_with_a_reason_and_not_with_its_own_code(store):
    # Its 0 would be a success, and its 3 would be a learning rate that no longer fits.
    failed = store.run("lrrt", "--setup", "mine_for_tests:exits", "--device", "cpu", code=2)
    failed.names("setup 'mine_for_tests:exits' raised SystemExit: 3")
    (run,) = store.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["lrrt.error"] in failed.error


def test_an_error_in_a_trial_is_one_line(store):
    command = ("main", "--setup", "mine_for_tests:fails_in_a_trial", "--device", "cpu")
    failed = store.run(*command, "--iterations", 60, "--refine", "true", code=2)
    failed.names("the file is gone")
    assert "Traceback" not in failed.err
    assert {run.info.status for run in store.runs("trial")} == {"FAILED"}


def test_options_of_the_built_in_setup_are_refused_before_a_run(store):
    for options in (["--model", "mlp"], ["--recipe", "keras"], ["--batch-size", 32]):
        store.run("lrrt", *SETUP, *options, code=2).names("built-in setup", "setup_args")
    assert store.runs() == []
