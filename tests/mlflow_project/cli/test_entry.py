import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tests.forked_python import programs
from tests.stores import search_path

ROOT = Path(__file__).parents[3]
FACTORIES = """
import torch
from torch import nn

def data(kind="good", n=60):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 3
    if kind == "nan":
        x[3, 0, 0, 0] = float("nan")
    if kind == "labels":
        y[5] = -1
    if kind == "empty":
        x, y = x[:0], y[:0]
    if kind == "wrong":
        return 3
    if kind == "raises":
        raise KeyError("no such column")
    if kind == "exits":
        raise SystemExit(f"line\\n\x1b[31m{'long ' * 900}")
    return (x, y), (x, y)

def model(kind="good"):
    if kind == "frozen":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    if kind == "narrow":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    if kind == "size":
        return nn.Sequential(nn.Flatten(), nn.Linear(99, 3))
    return "a string"
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_factories", None)


def own(what, kind):
    name = ("--dataset", "own_factories:data") if what == "data" else (
        "--dataset", "own_factories:data", "--model", "own_factories:model",
    )  # fmt: skip
    option = "--dataset-args" if what == "data" else "--model-args"
    return (*name, option, f'{{"kind": "{kind}"}}', "--batch-size", 16)


BEFORE_A_RUN = {
    "lr order": (("--lr-start", 1, "--lr-end", 0.1), ["lr_start=1", "lr_end=0.1"]),
    "zero lr": (("--lr-start", 0), ["lr_start=0"]),
    "negative lr": (("--lr-end", -1), ["lr_end=-1"]),
    "iterations": (("--iterations", 9), ["iterations=9"]),
    "rule": (("--rule", "artcle"), ["artcle", "'article'"]),
    "optimizer": (("--optimizer", "adm"), ["adm", "'adam'"]),
    "init": (("--init", "kaiming"), ["kaiming", "'kaiming_normal'"]),
    "no number": (("--lr-end", "big"), ["'big'", "number"]),
    "no whole number": (("--seed", 1.5), ["'1.5'", "whole number"]),
    "json": (("--model-args", "{width"), ["'{width'", "JSON"]),
    "json list": (("--model-args", "[1]"), ["JSON object"]),
    "option": (("--lr-edn", 1), ["--lr-edn", "--lr-end"]),
    "beta": (("--beta", 1), ["beta=1.0"]),
    "file name": (("--init", "file:" + "x" * 300), ["init='file:", "File name too long"]),
    "no home": (("--data-dir", "~nobody-here/x"), ["data_dir='~nobody-here/x'", "full path"]),
    "tests": (("--tests", 10**9), ["tests=1000000000", "at most 10000"]),
    "many iterations": (("--iterations", 10**18), ["iterations=1000000000000000000", "at most"]),
    "processes": (("--loader-workers", 10**6), ["loader_workers=1000000", "at most 1000"]),
}


@pytest.mark.parametrize("case", BEFORE_A_RUN)
def test_an_option_that_cannot_be_used_ends_before_a_run_is_opened(store, case):
    options, words = BEFORE_A_RUN[case]
    store.run("lrrt", *options, code=2).names(*words)
    assert not store.runs()


IN_A_RUN = {
    "dataset": (("--dataset", "digit"), ["'digit'", "'digits'"]),
    "model": (("--model", "resnet57"), ["'resnet57'", "'resnet5"]),
    "batch": (("--batch-size", 2000), ["batch_size=2000", "1437"]),
    "device": (("--device", "cuda:42"), ["cuda:42"]),
    "model args": (("--model-args", '{"wide": 3}'), ["'wide'"]),
    "image size": (("--model", "alexnet"), ["alexnet", "(1, 8, 8)"]),
    "file": (("--init", "file:none.safetensors"), ["none.safetensors"]),
    "run": (("--init", "run:abc"), ["'abc'"]),
    "module": (("--dataset", "no_such:data"), ["'no_such'"]),
    "factory": (("--dataset", "own_factories:x"), ["'x'"]),
    "nan": (own("data", "nan"), ["NaN"]),
    "labels": (own("data", "labels"), ["labels", "-1"]),
    "empty": (own("data", "empty"), ["train", "empty"]),
    "wrong": (own("data", "wrong"), ["int", "pipeline.data.Data"]),
    "raises": (own("data", "raises"), ["KeyError: 'no such column'"]),
    "exits": (own("data", "exits"), ["SystemExit: line"]),
    "frozen": (own("model", "frozen"), ["trainable"]),
    "narrow": (own("model", "narrow"), ["(2, 2)", "(2, 3)"]),
    "size": (own("model", "size"), ["(1, 8, 8)"]),
    "no module": (own("model", "good"), ["str", "torch.nn.Module"]),
    "folder": (("--dataset", "imagefolder:nowhere"), ["nowhere"]),
}


@pytest.mark.parametrize("case", IN_A_RUN)
def test_input_that_cannot_be_used_fails_the_run_with_one_line_and_nothing_half_written(
    store, factories, case
):
    options, words = IN_A_RUN[case]
    outcome = store.run("lrrt", *options, code=2)
    outcome.names(*words)
    run = store.one("lrrt")
    assert run.info.status == "FAILED"
    assert run.data.tags["lrrt.error"] in outcome.error
    assert store.artifacts(run) <= {"options.json"}
    assert not run.data.metrics


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("train", ("--epochs", 0), ["epochs=0"]),
        ("train", ("--schedule", "onecycle"), ["onecycle", "'one-cycle'"]),
        ("train", ("--narrowing-fraction", 1), ["narrowing_fraction=1.0"]),
        ("refine", ("--trials", 0), ["trials=0"]),
        ("refine", ("--narrowing", "bottom"), ["narrowing", "'bottom'"]),
        ("train", ("--lrrt-run-id", "nonesuch"), ["'nonesuch'"]),
        ("refine", ("--lrrt-run-id", "latest"), ["run lrrt"]),
        ("main", ("--refine", "maybe"), ["'maybe'", "boolean"]),
    ],
)
def test_the_other_commands_say_what_is_wrong_too(store, command, options, words):
    store.run(command, *options, code=2).names(*words)


def test_underscores_and_hyphens_are_the_same(store):
    # MLflow hands -P data_seed=2 on as --data_seed 2.
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--data_seed", 2)
    assert store.one("lrrt").data.params["data_seed"] == "2"


def test_the_project_run_of_mlflow_fails_with_the_reason(store, monkeypatch):
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    run = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    store.run("lrrt", "--iterations", 3, code=2)
    failed = client.get_run(run.info.run_id)
    assert failed.info.status == "FAILED"
    assert "iterations=3" in failed.data.tags["lrrt.error"]


@pytest.mark.parametrize("command", ["lrrt", "train", "refine", "main", "study"])
def test_help_groups_the_options_and_shows_defaults_and_examples(store, command):
    text = store.run(command, "--help").out
    for word in ("Task", "Range test", "Where it runs", "Tracking", "Examples", "[default:"):
        assert word in text
    lines = [line.strip() for line in text.splitlines()]
    assert f"lrrt-stage {command}" in lines
    assert any(line.startswith(f"mlflow run . -e {command} ") for line in lines)


def environment(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return outside | {"MLFLOW_TRACKING_URI": uri, "PATH": search_path(), "PYTHONUNBUFFERED": "1"}


def test_mlflow_run_runs_an_entry_point_and_passes_any_option_on(store, tmp_path):
    options = []
    result = tmp_path / "result.json"
    for given in ("model=mlp", "batch_size=128", "weight_decay=0.001", "lr_start=1e-6"):
        options += ["-P", given]
    options += ["-P", f"output_json={result}"]
    command = ["mlflow", "run", str(ROOT), "-e", "lrrt", "--env-manager", "local"]
    command += ["--experiment-name", "test", *options]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = store.one("lrrt")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lrrt digits mlp batch 128 seed 0"
    assert json.loads(result.read_text())["run_id"] == run.info.run_id
    assert run.data.tags["mlflow.project.entryPoint"] == "lrrt"
    assert run.data.params["weight_decay"] == "0.001"
    assert store.history(run, "lr")[1][0] == pytest.approx(1e-6)
    # No bars and no control characters where there is no terminal.
    assert "\x1b" not in done.stdout + done.stderr


SIGNALLING = """
import signal
import weakref
from torch import nn

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.{signal})

class Model(nn.Sequential):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 30:
            {where}
        return super().forward(x)

def make():
    return Model(nn.Flatten(), nn.Linear(64, 10))
"""
# Python drops what a finalizer raises, and what is called for a weak reference.
WHERE = {
    "training": "signal.raise_signal(signal.{signal})",
    "finalizer": "Finalized()",
    "weak reference": "weakref.finalize(set(), signal.raise_signal, signal.{signal})",
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_killed_and_keeps_what_was_measured(store, tmp_path, name, where):
    module = SIGNALLING.format(signal=name, where=WHERE[where].format(signal=name))
    (tmp_path / "signalling.py").write_text(module)
    command = [programs() / "lrrt-stage", "lrrt", "--experiment", "test"]
    command += ["--model", "signalling:make", "--iterations", "1000000"]
    command += ["--stop-multiple", "none", "--lr-end", "0.01"]
    outside = environment(tmp_path) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert re.search(r"Interrupted.* \d+ iterations", done.stderr)
    run = store.one("lrrt")
    assert run.info.status == "KILLED"
    assert {"curve.csv", "initial_weights.safetensors"} <= store.artifacts(run)
