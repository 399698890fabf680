import hashlib
import json
import re
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lrrt_stage import digest
from lrrt_stage.state import weights
from tests.stores import interrupted_after_epoch


@pytest.mark.starts_with("train")
def test_training_starts_from_the_range_tests_weights_and_publishes_the_contract(store, lrrt):
    run = store.one("train")
    tags, metrics = run.data.tags, run.data.metrics
    assert tags["lrrt.source_run_id"] == lrrt.info.run_id
    assert tags["lrrt.weights_sha256"] == lrrt.data.tags["lrrt.weights_sha256"]
    assert {"narrowed_lr_min", "narrowed_lr_max", "train_loss", "val_loss", "val_accuracy"} <= {
        *metrics
    }
    steps, rates = store.history(run, "lr")
    assert steps == list(range(8 * 11))
    # One-cycle from the narrowed minimum to the narrowed maximum.
    assert rates[0] == pytest.approx(metrics["narrowed_lr_min"])
    assert max(rates) == pytest.approx(metrics["narrowed_lr_max"], rel=1e-3)
    assert store.history(run, "val_loss")[0] == [11 * epoch for epoch in range(1, 9)]
    assert metrics["val_accuracy"] > 0.9
    assert {"final_weights.safetensors", "training.png"} <= store.artifacts(run)
    assert "checkpoint.safetensors" not in store.artifacts(run)


@pytest.mark.starts_with("train")
def test_the_first_loss_is_the_range_tests_bit_for_bit(store, lrrt):
    run = store.one("train")
    first = store.history(run, "train_loss")[1][0]
    assert first == store.history(lrrt, "train_loss")[1][0]
    assert run.data.metrics["first_loss"] == run.data.metrics["range_test_first_loss"] == first
    assert run.data.tags["lrrt.first_loss_equal"] == "true"


@pytest.mark.starts_with("train")
def test_the_default_takes_the_suggested_range(store, lrrt):
    metrics, suggested = store.one("train").data.metrics, lrrt.data.metrics
    for end in ("min", "max"):
        assert metrics[f"trained_lr_{end}"] == suggested[f"suggested_lr_{end}"]
        assert metrics[f"narrowed_lr_{end}"] == suggested[f"suggested_lr_{end}"]
    described = store.one("train").data.tags["mlflow.note.content"]
    assert re.search(r"\(one-cycle\), the range that \S", described)


@pytest.mark.starts_with("lrrt")
def test_narrowing_takes_a_share_off_the_top(store, lrrt):
    outcome = store.run("train", "--epochs", 2, "--narrowing-fraction", 0.3)
    assert "narrowed LR range" in outcome.out
    metrics, suggested = store.one("train").data.metrics, lrrt.data.metrics
    low, high = suggested["suggested_lr_min"], suggested["suggested_lr_max"]
    assert metrics["trained_lr_min"] == metrics["narrowed_lr_min"] == low
    assert metrics["trained_lr_max"] == metrics["narrowed_lr_max"]
    rates = store.history(store.one("train"), "lr")[1]
    assert max(rates) == pytest.approx(metrics["narrowed_lr_max"], rel=0.01)  # of few steps
    # Three tenths of the width on the log axis.
    assert np.log(high / metrics["narrowed_lr_max"]) == pytest.approx(0.3 * np.log(high / low))
    described = store.one("train").data.tags["mlflow.note.content"]
    assert re.search(r"\(one-cycle\), inside the range that \S", described)


@pytest.mark.starts_with("train")
def test_the_logged_model_loads_and_takes_the_datasets_own_images(store):
    run = store.one("train")
    (logged,) = run.outputs.model_outputs
    uri = f"models:/{logged.model_id}"
    model = mlflow.pytorch.load_model(uri)

    from pipeline import PreparedTask, Task

    prepared = PreparedTask(Task(model="mlp", batch_size=128))
    images, labels = prepared.data.val
    # Another number of images than in the example, as they are in the dataset.
    accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(run.data.metrics["val_accuracy"], abs=1e-6)

    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert info.signature.outputs.inputs[0].shape == (-1, 10)
    assert info.saved_input_example_info is not None
    assert mlflow.pyfunc.load_model(uri).predict(images[:3].numpy()).shape == (3, 10)
    assert mlflow.pytorch.load_model("models:/digits/1")(images[:5]).shape == (5, 10)


def test_the_logged_model_normalises_only_where_the_training_did(store):
    options = (*store.SMALL, "--normalize", "false", "--iterations", 60)
    store.run("lrrt", *options)
    store.run("train", "--epochs", 2)
    run = store.one("train")
    (logged,) = run.outputs.model_outputs
    model = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    bare = load_file(store.file(run, "final_weights.safetensors"))

    from pipeline import PreparedTask, Task

    images, labels = PreparedTask(Task(model="mlp", batch_size=128)).data.val
    hidden = images.flatten(1)
    for layer in (1, 3, 5):
        hidden = hidden @ bare[f"{layer}.weight"].T + bare[f"{layer}.bias"]
        hidden = hidden.relu() if layer < 5 else hidden
    assert (model(images) - hidden).abs().max() < 1e-4
    accuracy = (hidden.argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(run.data.metrics["val_accuracy"], abs=1e-6)


UNTRACEABLE = """
from torch import nn

class Model(nn.Sequential):
    def forward(self, x):
        # How it goes on depends on a value: a graph cannot hold that.
        y = super().forward(x)
        return y if y.sum().item() > 1e9 else y * 1

def make():
    return Model(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def untraceable(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "untraceable.py").write_text(UNTRACEABLE)
    store.run("lrrt", "--model", "untraceable:make", "--batch-size", 128, "--device", "cpu")
    yield
    sys.modules.pop("untraceable")


def test_a_model_that_cannot_be_exported_is_not_logged_and_its_weights_are(store, untraceable):
    outcome = store.run("train", "--epochs", 1, "--trust", "untraceable")
    assert "the model is not logged, since torch.export cannot export it" in outcome.err
    run = store.one("train")
    assert mlflow.search_logged_models(output_format="list") == []
    assert "final_weights.safetensors" in store.artifacts(run)
    assert "graph" not in outcome.out
    assert "def forward" not in outcome.out + outcome.err


def test_a_model_that_cannot_be_exported_is_not_registered(store, untraceable):
    outcome = store.run("train", "--epochs", 1, "--trust", "untraceable", "--register", "u", code=2)
    outcome.names("cannot be registered", "torch.export", "deployed")
    assert not store.one("train").data.metrics.keys() & {"train_loss"}
    assert mlflow.search_registered_models() == []


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("name", ["a/b", "a:b", "   ", "it's"])
def test_a_name_that_no_model_can_have_is_refused_before_the_training(store, name):
    store.run("train", "--epochs", 1, "--register", name, code=2).names("register")
    assert not store.one("train").data.metrics.keys() & {"train_loss"}
    assert mlflow.search_registered_models() == []


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("schedule", ["triangular", "warm-restarts", "constant"])
def test_other_schedules_stay_inside_the_narrowed_range(store, lrrt, schedule):
    store.run("train", "--epochs", 1, "--schedule", schedule)
    run = store.one("train")
    rates = store.history(run, "lr")[1]
    low, high = run.data.metrics["narrowed_lr_min"], run.data.metrics["narrowed_lr_max"]
    assert max(rates) <= high * (1 + 1e-9)
    assert min(rates) >= low * (1 - 1e-9)


@pytest.mark.parametrize(
    ("field", "value", "before"),
    [
        ("model", "cnn", "mlp"),
        ("optimizer", "adam", "sgd"),
        ("batch_size", 64, 128),
        ("seed", 1, 0),
    ],
)
@pytest.mark.starts_with("lrrt")
def test_a_task_that_differs_is_refused_with_the_field_and_the_way_on(store, field, value, before):
    outcome = store.run("train", "--epochs", 1, f"--{field}", value, code=2)
    outcome.names(field, value, before, "allow_mismatch")
    run = store.one("train")
    assert run.info.status == "FAILED"
    assert run.data.tags["lrrt.error"] in outcome.error
    assert not store.artifacts(run)
    assert not run.data.metrics


def test_none_that_was_typed_counts_as_given(store):
    store.run("lrrt", *store.SMALL, "--iterations", 60, "--clip-norm", 1)
    store.run("train", "--epochs", 1, "--clip-norm", "none", code=2).names("clip_norm", "1.0")
    store.run("train", "--epochs", 1, "--clip-norm", "none", "--allow-mismatch", "true")
    assert store.json(store.runs("train")[0], "options.json")["clip_norm"] is None


@pytest.mark.starts_with("lrrt")
def test_a_mismatch_can_be_allowed_on_purpose(store, lrrt):
    store.run("train", "--epochs", 1, "--batch-size", 64, "--allow-mismatch", "true")
    run = store.one("train")
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "64"


@pytest.mark.starts_with("lrrt")
def test_weights_never_go_into_another_model_even_if_a_mismatch_is_allowed(store):
    outcome = store.run("train", "--model", "cnn", "--allow-mismatch", "true", code=2)
    outcome.names("weights", "model")


def test_data_that_changed_under_the_same_name_are_refused(store, tmp_path, monkeypatch):
    module = (
        "import torch\n"
        "def make():\n"
        "    x = torch.randn(64, 5, generator=torch.Generator().manual_seed({seed}))\n"
        "    y = torch.arange(64) % 2\n"
        "    return (x, y), (x, y)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # Python takes its compiled file if size and second are the same.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "owndata.py").write_text(module.format(seed=0))
    task = ("--dataset", "owndata:make", "--model", "mlp", "--batch-size", 16)
    store.run("lrrt", *task, "--rule", "steepest", "--iterations", 60)
    (tmp_path / "owndata.py").write_text(module.format(seed=1))
    del sys.modules["owndata"]
    store.run("train", "--epochs", 1, code=2).names("owndata:make")


@pytest.mark.starts_with("lrrt")
def test_training_that_diverges_fails_clearly_and_keeps_its_curves(store, lrrt):
    huge = {"suggested_lr_min": 1e5, "suggested_lr_max": 1e6}
    _overwrite_range(lrrt, huge["suggested_lr_min"], huge["suggested_lr_max"])
    outcome = store.run("train", "--epochs", 3, "--register", "bad", code=2)
    outcome.names("all 3 attempts", "nan", "narrowing_fraction")
    run = store.one("train")
    assert run.info.status == "FAILED"
    assert store.history(run, "train_loss")[0]
    assert not mlflow.search_registered_models()


@pytest.mark.starts_with("lrrt")
def test_a_training_that_is_ruined_starts_again_and_every_attempt_is_told(store, lrrt):
    _overwrite_range(lrrt, 0.3, 3.0)
    outcome = store.run("train", "--epochs", 5, "--register", "again")
    assert "attempt 1 with maximum LR 3 was lost" in outcome.err
    run = store.one("train")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["attempts"] > 1
    lost = int(run.data.metrics["attempts"]) - 1
    assert outcome.err.count("starting again with a third of it") == lost
    # What counts is the range of the last attempt.
    assert run.data.metrics["trained_lr_max"] == pytest.approx(3.0 / 3**lost)
    assert run.data.metrics["narrowed_lr_max"] == 3.0
    assert run.data.tags["lrrt.attempts"] == str(lost + 1)
    reasons = run.data.tags["lrrt.lost_attempts"].split("; ")
    assert [reason.partition(":")[0] for reason in reasons] == [
        f"maximum LR {3.0 / 3**number:.3g}" for number in range(lost)
    ]
    description = run.data.tags["mlflow.note.content"]
    assert f"It is attempt {lost + 1}" in description
    assert reasons[0].partition(": ")[2] in description
    # The steps are counted on, and a series says where attempts begin.
    starts, numbers = store.history(run, "attempt")
    assert numbers == [*range(1, lost + 2)]
    assert starts[0] == 0
    steps, losses = store.history(run, "train_loss")
    assert steps == [*range(len(losses))] == store.history(run, "lr")[0]
    assert {losses[start] for start in starts} == {run.data.metrics["range_test_first_loss"]}
    assert run.data.tags["lrrt.first_loss_equal"] == "true"
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'again'")
    assert float(version.tags["lrrt.trained_lr_max"]) == run.data.metrics["trained_lr_max"]


@pytest.mark.starts_with("lrrt")
def test_a_single_attempt_goes_on_to_its_end(store, lrrt):
    _overwrite_range(lrrt, 0.07, 0.7)
    store.run("train", "--epochs", 5, "--attempts", 1)
    run = store.one("train")
    assert len(store.history(run, "train_loss")[0]) == 5 * 11
    assert run.data.metrics["attempts"] == 1
    assert "lrrt.lost_attempts" not in run.data.tags


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_logged_model_is_the_best_one_or_the_last_one(store, lrrt, keep):
    _overwrite_range(lrrt, 0.03, 0.3)
    options = ("--epochs", 8, "--schedule", "constant", "--attempts", 1)
    store.run("train", *options, "--keep", keep, "--register", "kept")
    run = store.one("train")
    _, losses = store.history(run, "val_loss")
    best = losses.index(min(losses))
    metrics = run.data.metrics
    assert metrics["best_epoch"] == best + 1 < 8
    assert metrics["best_val_loss"] == losses[best]
    assert metrics["best_val_accuracy"] == store.history(run, "val_accuracy")[1][best]
    assert metrics["val_loss"] == losses[-1]
    folder = Path(mlflow.artifacts.download_artifacts(run.info.artifact_uri))
    kept = {name: load_file(folder / f"{name}_weights.safetensors") for name in ("best", "final")}
    assert run.data.tags["lrrt.best_weights_sha256"] == digest(kept["best"])
    assert run.data.tags["lrrt.final_weights_sha256"] == digest(kept["final"])
    model = mlflow.pytorch.load_model("models:/kept/1")
    logged = {**model.state_dict()}
    wanted = kept["best" if keep == "best" else "final"]
    for name, value in wanted.items():
        (found,) = [v for k, v in logged.items() if k.endswith(name) and v.shape == value.shape]
        assert torch.equal(found.cpu(), value)
    told = "The logged model is that of epoch" in run.data.tags["mlflow.note.content"]
    assert told == (keep == "best")


@pytest.mark.starts_with("lrrt")
def test_a_range_test_without_a_fall_guards_nothing(store, lrrt):
    folder = Path(lrrt.info.artifact_uri.removeprefix("file://"))
    table = pd.read_csv(folder / "curve.csv")
    for name in ("loss", "probe_loss"):
        table[name] = table[name].iloc[0]
    table.drop(columns="probe_baseline").to_csv(folder / "curve.csv", index=False)
    sha = hashlib.sha256((folder / "curve.csv").read_bytes()).hexdigest()
    mlflow.MlflowClient().set_tag(lrrt.info.run_id, "lrrt.curve_sha256", sha)
    store.run("train", "--epochs", 1, code=2).names("no fall of the loss", "attempts=1")
    store.run("train", "--epochs", 1, "--attempts", 1)


def _overwrite_range(run, low, high):
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "suggestions.json"
    content = json.loads(path.read_text())
    content["range"] = {"min": low, "max": high}
    content["rules"][content["rule"]] |= content["range"]
    path.write_text(json.dumps(content))
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    mlflow.MlflowClient().set_tag(run.info.run_id, "lrrt.suggestions_sha256", sha)


@pytest.mark.starts_with("lrrt")
def test_an_interrupted_training_is_resumed_to_the_same_weights(store, lrrt):
    store.run("train", "--epochs", 4)
    whole = store.one("train")

    with interrupted_after_epoch(2):
        store.run("train", "--epochs", 4, code=130)
    interrupted = store.runs("train")[0]
    assert interrupted.info.status == "KILLED"
    assert len(store.history(interrupted, "train_loss")[0]) == 22
    assert "checkpoint.safetensors" in store.artifacts(interrupted)

    started = time.time()
    store.run("train", "--epochs", 4, "--resume", interrupted.info.run_id)
    resumed = store.runs("train")[0]
    assert resumed.info.start_time / 1000 >= started - 1
    assert resumed.data.tags["lrrt.resumed_run_id"] == interrupted.info.run_id
    for metric in ("train_loss", "val_loss", "lr"):
        assert store.history(resumed, metric) == store.history(whole, metric)
    files = [store.file(run, "final_weights.safetensors") for run in (whole, resumed)]
    assert digest(weights.load(files[0])) == digest(weights.load(files[1]))


@pytest.mark.starts_with("lrrt")
def test_a_range_test_that_was_deleted_is_refused(store, lrrt):
    mlflow.MlflowClient().delete_run(lrrt.info.run_id)
    outcome = store.run("train", "--lrrt-run-id", lrrt.info.run_id, code=2)
    outcome.names(lrrt.info.run_id, "deleted")


@pytest.mark.starts_with("train")
@pytest.mark.parametrize("stage", ["lrrt", "train"])
def test_a_run_that_is_no_unfinished_training_is_not_resumed(store, stage):
    run_id = store.one(stage).info.run_id
    store.run("train", "--epochs", 1, "--resume", run_id, code=2).names(run_id)


@pytest.mark.starts_with("lrrt")
def test_a_checkpoint_that_cannot_be_used_is_named(store, monkeypatch):
    stage = sys.modules["mlflow_project.stages.train"]

    def interrupting(training, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "log_training", interrupting)
        store.run("train", "--epochs", 2, code=130)
    run = store.one("train")
    path = store.file(run, "checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    resume = ("train", "--epochs", 2, "--resume", run.info.run_id)
    store.run(*resume, code=2).names(run.info.run_id, "checkpoint.safetensors", "altered")
    path.unlink()
    store.run(*resume, code=2).names(run.info.run_id, "checkpoint.safetensors", "no artifact")


@pytest.mark.gpu
def test_the_first_loss_is_equal_on_the_gpu(store):
    for precision in ("fp32", "bf16", "fp16"):
        store.run("lrrt", "--device", "cuda", "--precision", precision)
        store.run("train", "--device", "cuda", "--epochs", 2)
        assert store.runs("train")[0].data.tags["lrrt.first_loss_equal"] == "true"
    assert torch.cuda.is_available()


DOUBLE = """
import torch

def data():
    x = torch.randn(64, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (x, torch.arange(64) % 3), (x[:1], torch.arange(1))
"""


def test_inputs_of_double_precision_are_trained_on_and_the_model_takes_them(
    store, tmp_path, monkeypatch
):
    (tmp_path / "double_data.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = ("--dataset", "double_data:data", "--model", "mlp", "--batch-size", 16)
    store.run("lrrt", *task, "--rule", "valley")
    store.run("train", "--epochs", 1, "--dataset", "double_data:data")
    assert store.one("train").info.status == "FINISHED"


@pytest.mark.starts_with("lrrt")
def test_a_different_task_is_told_before_its_data_is_loaded(store, lrrt):
    outcome = store.run("train", "--dataset", "imagefolder:nowhere", code=2)
    outcome.names("imagefolder:", "nowhere", lrrt.info.run_id)
    assert "no folder" not in outcome.error
