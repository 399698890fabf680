"""Secrets in arguments: they reach the factory, and nothing that a run writes or prints."""

import json
import sys

import pytest

from lrrt_stage import LRRTError
from mlflow_project import load_handoff
from pipeline import PreparedTask, Task

SOURCE = """
import json
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pipeline import Setup

x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()


def setup(hf_token=None, nested=None, address="", fail="", batch_size=32):
    Path({seen!r}).write_text(json.dumps([hf_token, nested, address]))
    if fail:
        raise ValueError(f"{{fail}}: {{hf_token}} is no good, nor is {{nested}} at {{address}}")
    model = nn.Linear(4, 2)
    val = DataLoader(TensorDataset(x[96:], y[96:]), 32)
    train = DataLoader(TensorDataset(x[:96], y[:96]), batch_size)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return Setup(
        model=model, optimizer=sgd, train_batches=train, val_batches=val,
        loss_fn=nn.CrossEntropyLoss(),
    )
"""
MODULE = "secret_for_tests"
SETUP = ("--setup", f"{MODULE}:setup", "--device", "cpu")
TOKEN, PASSWORD, INNER = "hf-5e1f8a", "hunter2-hunter2", "k3y-of-the-api"
ARGUMENTS = {
    "hf_token": TOKEN,
    "nested": [{"API-Key": INNER, "width": 3}],
    "address": f"postgresql://me:{PASSWORD}@host/db",
}
SECRETS = (TOKEN, PASSWORD, INNER)
SHORT = ("--iterations", 60, "--workers", 1)
SEARCH = ("--refine", "true", "--trials", 1)


@pytest.fixture
def seen(store, tmp_path, tmp_path_factory, monkeypatch):
    """What the factory was called with."""
    place = tmp_path_factory.mktemp("elsewhere")
    source = SOURCE.format(seen=str(place / "seen"))
    (place / f"{MODULE}.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(place)
    yield lambda: json.loads((place / "seen").read_text("utf-8"))
    sys.modules.pop(MODULE, None)


def require_absent(tmp_path, *outcomes):
    """No secret in any file below the store's folder, or in what was printed."""
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert [secret for secret in SECRETS if secret.encode() in content] == [], path
    for outcome in outcomes:
        printed = outcome.out + outcome.err
        assert [secret for secret in SECRETS if secret in printed] == []


def test_they_are_in_nothing_that_the_stages_write_or_print(store, seen, tmp_path):
    given = ("--setup-args", json.dumps(ARGUMENTS))
    outcomes = [
        store.run("main", *SETUP, *given, *SHORT, *SEARCH, "--epochs", 1, "--tests", 2),
        store.run("study", *SETUP, *given, *SHORT, "--tests", 2),
        store.run(
            "study", *SETUP, *given, *SHORT, "--kind", "mismatch", "--tests", 2, "--epochs", 1
        ),
        store.run("train", *SETUP[:2], *given, "--epochs", 1),
        store.run("check", *SETUP[:2], *given, "--workers", 1),
    ]
    assert seen() == list(ARGUMENTS.values())
    require_absent(tmp_path, *outcomes)
    (test, *_) = store.runs("lrrt")
    told = store.json(test, "task.json")["task"]["setup_args"]
    assert told["hf_token"] == told["nested"][0]["API-Key"] == "***"
    assert told["nested"][0]["width"] == 3
    assert told["address"] == "postgresql://me:***@host/db"
    assert test.data.params["setup_args.hf_token"] == "***"


@pytest.mark.parametrize("fail", ["here", "there"])
def test_they_are_in_no_error(store, seen, tmp_path, fail):
    given = ("--setup-args", json.dumps(ARGUMENTS | {"fail": fail}))
    outcome = store.run("lrrt", *SETUP, *given, code=2)
    outcome.names("ValueError", "***", "width")
    unknown = store.run("lrrt", *SETUP, "--setup-args", json.dumps(ARGUMENTS | {"x": 1}), code=2)
    without = store.run("lrrt", "--setup-args", json.dumps(ARGUMENTS), code=2)
    damaged = store.run("lrrt", *SETUP, "--setup-args", json.dumps(ARGUMENTS)[:-1], code=2)
    loose = store.run("lrrt", *SETUP, "--setup-args", f"{{hf_token: {TOKEN}}}", code=2)
    require_absent(tmp_path, outcome, unknown, without, damaged, loose)
    with pytest.raises(LRRTError) as error:
        PreparedTask(Task(setup=f"{MODULE}:setup", setup_args=ARGUMENTS | {"fail": fail}))
    assert not any(secret in str(error.value) for secret in SECRETS)


def test_a_secret_is_typed_again_and_is_no_mismatch(store, seen):
    given = ("--setup-args", json.dumps(ARGUMENTS))
    store.run("lrrt", *SETUP, *given, *SHORT)
    for command in (("train", "--epochs", 1), ("refine", "--trials", 1)):
        store.run(*command, *SETUP[:2], code=2).names("setup_args", "secret", "env:NAME")
        other = json.dumps(ARGUMENTS | {"hf_token": "another-one"})
        store.run(*command, *SETUP[:2], "--setup-args", other)
        smaller = json.dumps(ARGUMENTS | {"batch_size": 16})
        store.run(*command, *SETUP[:2], "--setup-args", smaller, code=2).names("batch_size")
    assert seen()[0] == "another-one"
    store.run("check", *SETUP[:2], code=2).names("setup_args", "secret")


def test_a_variable_is_read_where_the_factory_is_called(store, seen, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_FOR_TESTS", TOKEN)
    monkeypatch.setenv("KEY_FOR_TESTS", INNER)
    arguments = {"hf_token": "env:TOKEN_FOR_TESTS", "nested": [{"API-Key": "env:KEY_FOR_TESTS"}]}
    outcomes = [store.run("lrrt", *SETUP, "--setup-args", json.dumps(arguments), *SHORT)]
    assert seen()[:2] == [TOKEN, [{"API-Key": INNER}]]
    test = store.one("lrrt")
    assert store.json(test, "task.json")["task"]["setup_args"] == arguments
    assert test.data.params["setup_args.hf_token"] == "env:TOKEN_FOR_TESTS"
    # A hand-off names variables only for who allows it.
    store.run("train", "--epochs", 1, *SETUP[:2], code=2).names("env:TOKEN_FOR_TESTS", "--trust")
    trust = f"{MODULE},env:TOKEN_FOR_TESTS,env:KEY_FOR_TESTS"
    outcomes.append(store.run("train", "--epochs", 1, "--trust", trust))
    given = ("--setup-args", json.dumps(arguments))
    outcomes.append(store.run("train", "--epochs", 1, "--trust", MODULE, *given))
    fail = json.dumps(arguments | {"fail": "so"})
    outcomes.append(store.run("lrrt", *SETUP, "--setup-args", fail, code=2))
    require_absent(tmp_path, *outcomes)
    monkeypatch.delenv("TOKEN_FOR_TESTS")
    unset = store.run("lrrt", *SETUP, "--setup-args", json.dumps(arguments), code=2)
    unset.names("setup_args", "TOKEN_FOR_TESTS", "not set")


def test_arguments_of_built_in_things_may_be_variables(store, monkeypatch):
    monkeypatch.setenv("SMOOTH_FOR_TESTS", "mean")
    options = ("--loss", "CrossEntropyLoss", "--loss-args", '{"reduction": "env:SMOOTH_FOR_TESTS"}')
    store.run("lrrt", *store.SMALL, *SHORT, *options)
    trust = ("--trust", "env:SMOOTH_FOR_TESTS")
    store.run("train", "--epochs", 1, *trust)
    assert load_handoff().task.loss_args == {"reduction": "env:SMOOTH_FOR_TESTS"}


def test_the_storage_of_a_search_may_be_in_a_variable(store, tmp_path, monkeypatch):
    store.run("lrrt", *store.SMALL, *SHORT)
    monkeypatch.setenv("LRRT_STORAGE", f"sqlite:///{tmp_path}/search.db")
    store.run("refine", "--trials", 1)
    assert (tmp_path / "search.db").exists()
    assert not (tmp_path / "optuna.db").exists()
    monkeypatch.setenv("LRRT_STORAGE", f"nodb://me:{PASSWORD}@host/db")
    failed = store.run("refine", "--trials", 1, code=2)
    require_absent(tmp_path, failed)
