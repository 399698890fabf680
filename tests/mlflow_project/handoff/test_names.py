"""What a forged hand-off may choose on the machine of the person who uses it: nothing."""

import copy
import hashlib
import json
import pickle
import sys
from dataclasses import asdict, replace

import joblib
import mlflow
import pytest
import torch
from torch import nn

from lrrt_stage import LRRTError
from mlflow_project import load_handoff
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import read_handoff
from pipeline import PreparedTask, Task
from pipeline.data.datasets import load_data
from pipeline.data.factories import load_factory
from pipeline.data.trust import NameFromRun
from pipeline.jobs.jobs import RangeTestJob
from pipeline.models.networks import build_model
from pipeline.models.optimizers import build_optimizer
from pipeline.task.plan import RangeTestPlan
from pipeline.task.tasks import Runtime

pytestmark = pytest.mark.starts_with("lrrt")

SOURCE = """
from os import system
from pathlib import Path

import torch
from torch import nn

Path({mark!r}).touch()

def setup(**arguments):
    Path({mark!r} + ".called").touch()
    return nn.Linear(1, 1)

def model(**arguments):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def dataset(**arguments):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 10
    return (x, y), (x, y)

def optimizer(parameters, **arguments):
    return torch.optim.SGD(parameters, lr=0.1, **arguments)

def loss(**arguments):
    return nn.CrossEntropyLoss(**arguments)
"""
MODULE = "forged_for_tests"
CODE = ("setup", "dataset", "model", "optimizer", "loss")


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that exists once the module was imported."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / f"{MODULE}.py").write_text(SOURCE.format(mark=str(tmp_path / "mark")), "utf-8")
    monkeypatch.syspath_prepend(place)
    yield tmp_path / "mark"
    sys.modules.pop(MODULE, None)


@pytest.fixture
def forge(store):
    """Give a range test a different task, and the digest of it."""

    def forge(**changes):
        run = store.runs("lrrt")[0]
        path = store.file(run, "task.json")
        content = json.loads(path.read_text("utf-8"))
        builtin = asdict(Task())
        if "setup" in changes:
            content["task"] = builtin
        content["task"] |= changes
        path.write_text(json.dumps(content), "utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        mlflow.MlflowClient().set_tag(run.info.run_id, "lrrt.task_sha256", digest)
        return run.info.run_id

    return forge


@pytest.mark.parametrize("stage", ["train", "refine", "check"])
@pytest.mark.parametrize("kind", CODE)
def test_code_that_a_hand_off_names_is_refused_before_its_import(store, forge, mark, stage, kind):
    run_id = forge(**{kind: f"{MODULE}:{kind}"})
    before = {*sys.modules}
    given = ("--baseline", run_id) if stage == "check" else ("--lrrt-run-id", run_id)
    outcome = store.run(stage, *given, code=2)
    outcome.names(kind, f"{MODULE}:{kind}", run_id, f"--{kind}", f"--trust {MODULE}", "LRRT_TRUST")
    assert not mark.exists()
    assert MODULE not in {*sys.modules} - before


@pytest.mark.parametrize(
    "changes",
    [
        {"setup": "os:system", "setup_args": {"command": "touch mark"}},
        {"setup": "builtins:exec"},
        {"model": "subprocess:call", "model_args": {"args": ["touch", "mark"]}},
        {"optimizer": "os:system"},
        {"optimizer": "OS:system"},
        {"dataset": "torch:load"},
        {"dataset": "imagefolder:etc"},
        {"dataset": "imagefolder:/etc"},
        {"dataset": "cifar10:/etc"},
        {"dataset": "digits:/etc"},
        {"init": "file:/etc/passwd"},
        {"init": "file:mark"},
        {"loss": "torch.hub:load"},
    ],
)
def test_nothing_that_a_hand_off_names_is_called_or_opened(store, forge, tmp_path, changes):
    run_id = forge(**changes)
    for command in (
        ("train", "--epochs", 1),
        ("refine", "--trials", 1),
        ("check", "--baseline", run_id),
    ):
        outcome = store.run(*command, code=2)
        outcome.names(run_id, next(iter(changes)))
        assert "--trust" in outcome.error
    assert not (tmp_path / "mark").exists()


def test_what_the_person_names_takes_its_place(store, forge, mark):
    run_id = forge(model=f"{MODULE}:model", model_args={})
    with pytest.raises(LRRTError, match="model"):
        PreparedTask(load_handoff(run_id).task)
    task = replace(load_handoff(run_id).task, model=f"{MODULE}:model")
    assert type(task.model) is str
    PreparedTask(task)
    assert mark.exists()
    # The same on the command line; the weights are those of another model, which is told then.
    store.run("train", "--model", f"{MODULE}:model", code=2).names("weights")
    # Another name than that of the hand-off is not refused for it.
    other = store.run("train", "--model", "mlp", code=2)
    assert "allow_mismatch" in other.error
    assert "--trust" not in other.error


@pytest.mark.parametrize(
    ("trust", "trusted"),
    [
        (MODULE, True),
        (f"x, {MODULE} ", True),
        (f"{MODULE}:model", True),
        (f"{MODULE}:other", False),
        (f"{MODULE}.model", False),
        (MODULE[:-1], False),
        (MODULE.upper(), False),
        ("", False),
    ],
)
def test_a_list_of_trusted_modules_and_names(store, forge, mark, monkeypatch, trust, trusted):
    run_id = forge(model=f"{MODULE}:model", model_args={})

    def used(handoff):
        try:
            PreparedTask(handoff.task)
        except LRRTError as error:
            return "--trust" not in str(error)
        return True

    assert used(load_handoff(run_id, trust=trust)) is trusted
    assert used(load_handoff(run_id, trust=tuple(trust.split(",")))) is trusted
    monkeypatch.setenv("LRRT_TRUST", trust)
    assert used(load_handoff(run_id)) is trusted
    assert mark.exists() is trusted


def test_a_package_trusts_what_is_in_it(store, forge, mark):
    (mark.parent / "elsewhere" / "packed_for_tests").mkdir()
    source = (mark.parent / "elsewhere" / f"{MODULE}.py").read_text("utf-8")
    (mark.parent / "elsewhere" / "packed_for_tests" / "inner.py").write_text(source, "utf-8")
    run_id = forge(model="packed_for_tests.inner:model", model_args={})
    for trust in ("packed_for_tests", "packed_for_tests.inner"):
        PreparedTask(load_handoff(run_id, trust=trust).task)
    with pytest.raises(LRRTError, match="--trust"):
        PreparedTask(load_handoff(run_id, trust="packed_for_tests.inn").task)


@pytest.mark.parametrize("command", ["train", "refine", "check"])
def test_the_commands_take_the_list(store, forge, mark, command):
    run_id = forge(model=f"{MODULE}:model", model_args={})
    source = "--baseline" if command == "check" else "--lrrt-run-id"
    outcome = store.run(command, source, run_id, "--trust", "x, y", code=2)
    outcome.names(run_id, "--trust")
    assert not mark.exists()
    code = 3 if command == "check" else 2  # another model, which needs another learning rate
    outcome = store.run(command, source, run_id, "--trust", MODULE, code=code)
    assert "weights do not fit" in outcome.err or code == 3
    assert mark.exists()


@pytest.mark.parametrize("text", ["a b", "a..b", "*", ":", "a:", ":a", "-x", "1a"])
def test_a_name_that_cannot_be_trusted_is_told(store, monkeypatch, text):
    store.run("train", "--trust", text, code=2).names("trust", text)
    monkeypatch.setenv("LRRT_TRUST", text)
    with pytest.raises(LRRTError, match="trust"):
        load_handoff()


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "posix:system",
        "nt:system",
        "builtins:exec",
        "subprocess:Popen",
        "torch:load",
        "torch.hub:load",
        "numpy:load",
        "scipy.io:loadmat",
        "sklearn.datasets:fetch_openml",
        "pandas:read_pickle",
        "joblib:load",
        "optuna:load_study",
        "mlflow.pyfunc:load_model",
        "yaml:unsafe_load",
        "click:launch",
        "cloudpickle:loads",
        "pipeline.data.datasets:imagefolder",
        "mlflow_project:load_handoff",
        "lrrt_stage.state.weights:load",
        "pip:main",
        "_pytest.config:main",
    ],
)
def test_a_library_cannot_be_trusted(store, forge, name):
    module = name.partition(":")[0]
    run_id = forge(setup=name)
    with pytest.raises(LRRTError, match="library") as refused:
        PreparedTask(load_handoff(run_id, trust=(module, name)).task)
    assert "\n" not in str(refused.value)


def test_a_function_that_a_trusted_module_only_imports_is_refused(store, forge, tmp_path, mark):
    run_id = forge(setup=f"{MODULE}:system", setup_args={"command": "touch called"})
    store.run("train", "--trust", MODULE, code=2).names(run_id, f"{MODULE}:system", "defined")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", [f"{MODULE}:os.system", f"{MODULE}:model.eval", f"{MODULE}:a b"])
def test_an_attribute_of_an_attribute_is_no_factory(store, forge, mark, name):
    forge(model=name)
    store.run("train", "--trust", MODULE, code=2)
    assert not mark.exists()


def test_what_a_trusted_factory_returns_is_checked_first(store, forge, mark):
    forge(setup=f"{MODULE}:setup")
    store.run("train", "--trust", MODULE, code=2).names("returned Linear", "pipeline.Setup")
    with pytest.raises(LRRTError, match=r"nn\.Module"):
        build_model(f"{MODULE}:dataset", {}, (1,), 2)
    with pytest.raises(LRRTError, match="optimizer"):
        build_optimizer(f"{MODULE}:loss", nn.Linear(1, 1).parameters(), 0, 0, {})


@pytest.mark.parametrize("kind", ["imagefolder", "file"])
def test_a_folder_trusts_what_is_below_it(store, forge, tmp_path, kind):
    data, secret = tmp_path / "data", tmp_path / "secret"
    (data / "photos").mkdir(parents=True)
    secret.mkdir()
    (data / "link").symlink_to(secret)
    (tmp_path / "way").symlink_to(data)
    field = "init" if kind == "file" else "dataset"

    def trusted(name, folder):
        run_id = forge(**{field: f"{kind}:{name}"})
        try:
            PreparedTask(load_handoff(run_id, trust=(f"{kind}:{folder}",)).task).initial_weights()
        except LRRTError as error:
            return "--trust" not in str(error)
        return True

    assert trusted(data, data)
    assert trusted(data / "photos", data)
    assert trusted(data / "photos", f"{data}/")
    assert trusted(tmp_path / "way" / "photos", tmp_path / "way")
    assert not trusted(data, data / "photos")
    assert not trusted(secret, data)
    assert not trusted(f"{data}-more", data)
    assert not trusted(f"{data}/../secret", data)
    assert not trusted(f"{data}/photos/../../secret", data)
    assert not trusted(data / "link", data)
    assert not trusted(data / "link" / "x", data)
    other = "file" if kind == "imagefolder" else "imagefolder"
    run_id = forge(**{field: f"{kind}:{data}"})
    handoff = load_handoff(run_id, trust=(f"{other}:{data}", str(kind)))
    with pytest.raises(LRRTError, match="--trust"):
        PreparedTask(handoff.task)


def test_a_name_keeps_where_it_comes_from(store, forge, mark):
    run_id = forge(model=f"{MODULE}:model", dataset="imagefolder:/etc", init="file:/etc/passwd")
    task = load_handoff(run_id).task
    (elsewhere,) = joblib.Parallel(2)([joblib.delayed(copy.copy)(task)])
    copies = [
        task,
        replace(task, seed=3),
        task.changed(batch_size=7),
        copy.deepcopy(task),
        pickle.loads(pickle.dumps(task)),
        Task(**asdict(task)),
        load_handoff(run_id).recipe,
        elsewhere,
    ]
    for each in copies:
        for name in (each.model, each.dataset, each.init):
            assert isinstance(name, NameFromRun)
            assert name.run_id == run_id
    assert task.model == f"{MODULE}:model"
    assert {f"{MODULE}:model": 1}[task.model] == 1
    assert json.loads(json.dumps(asdict(task)))["model"] == f"{MODULE}:model"


def test_every_door_is_closed(store, forge, mark):
    run_id = forge(model=f"{MODULE}:model", dataset="imagefolder:/etc", init="file:/etc/passwd")
    task = load_handoff(run_id).task
    refused = [
        lambda: load_factory("model", task.model),
        lambda: build_model(task.model, {}, (1, 8, 8), 10),
        lambda: load_data(task.dataset, {}, "."),
        lambda: PreparedTask(task),
        lambda: RangeTestJob("job", task, RangeTestPlan()).run(Runtime(device="cpu")),
        lambda: PreparedTask(replace(task, model="mlp", dataset="digits")).initial_weights(),
    ]
    for each in refused:
        with pytest.raises(LRRTError, match=f"run {run_id}"):
            each()
    prepared = PreparedTask(Task(model="mlp"))
    for change in ({"model": task.model}, {"init": task.init}):
        prepared.task = replace(Task(), **change)
        with pytest.raises(LRRTError, match=f"run {run_id}"):
            fingerprint("lrrt", prepared)
    assert not mark.exists()


def test_built_in_names_need_no_trust(store, forge):
    run_id = forge(model="mlp", optimizer="AdamW", loss="CrossEntropyLoss", init="own")
    task = load_handoff(run_id).task
    assert not any(isinstance(value, NameFromRun) for value in asdict(task).values())
    PreparedTask(task)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "resnet18", "model_args": {"weights": "DEFAULT"}},
        {"model": "resnet18", "model_args": {"weights": "IMAGENET1K_V1", "progress": False}},
        {"dataset_args": {"path": "/etc"}},
        {"dataset": "cifar10", "dataset_args": {"data_dir": "/etc"}},
        {"dataset": "cifar10", "dataset_args": {"root": "/etc"}},
        {"dataset": "cifar10", "dataset_args": {"class_name": "FakeData"}},
        {"optimizer_args": {"params": []}},
    ],
)
def test_arguments_of_built_in_things_open_nothing(store, forge, changes, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", opened)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", opened)
    monkeypatch.setattr("urllib.request.urlopen", opened)
    forge(**changes)
    store.run("train", code=2).names("_args")


def test_a_variable_that_a_hand_off_names_is_not_read(store, forge, mark, monkeypatch):
    monkeypatch.setenv("SECRET_FOR_TESTS", "hunter2hunter2")
    for kind in ("model", "dataset", "optimizer", "loss"):
        name = {"model": "mlp", "dataset": "digits", "optimizer": "sgd", "loss": None}[kind]
        run_id = forge(**{kind: name, f"{kind}_args": {"a": [{"b": "env:SECRET_FOR_TESTS"}]}})
        outcome = store.run("train", code=2)
        outcome.names(f"{kind}_args", "env:SECRET_FOR_TESTS", run_id, "--trust")
        assert "hunter2" not in outcome.err + outcome.out
        with pytest.raises(LRRTError, match="env:SECRET_FOR_TESTS"):
            RangeTestJob("job", load_handoff(run_id).task, RangeTestPlan()).run(Runtime())
        forge(**{f"{kind}_args": {}})
    args = {"a": "env:SECRET_FOR_TESTS"}
    run_id = forge(model=f"{MODULE}:model", model_args=args)
    # Naming the code is not to name the variable.
    typed = ("--model", f"{MODULE}:model")
    store.run("train", *typed, code=2).names("env:SECRET_FOR_TESTS", run_id)
    for more in (("--model-args", json.dumps(args)), ("--trust", "env:SECRET_FOR_TESTS")):
        store.run("train", *typed, *more, code=2).names("weights do not fit")


def test_names_of_runs_of_version_1_and_of_tests_are_marked_as_well(store, forge, mark):
    run_id = forge(model=f"{MODULE}:model")
    run = store.runs("lrrt")[0]
    for stage in ("test", "lrrt"):
        mlflow.MlflowClient().set_tag(run_id, "lrrt.stage", stage)
        assert isinstance(load_handoff(run_id).task.model, NameFromRun)
    path = store.file(run, "task.json")
    content = json.loads(path.read_text("utf-8")) | {"contract_version": 1}
    path.write_text(json.dumps(content), "utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mlflow.MlflowClient().set_tag(run_id, "lrrt.task_sha256", digest)
    assert isinstance(read_handoff(mlflow.get_run(run_id)).task.model, NameFromRun)
