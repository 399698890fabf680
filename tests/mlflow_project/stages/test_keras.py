"""The commands on a Keras 3 model that a factory makes."""

import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import digest
from mlflow_project import load_handoff, track_range_test
from pipeline import PreparedTask, Task

FACTORY = "examples.keras_model:build"
SEEDED_DROPOUT = """
from examples.keras_model import TorchStyle, keras, layers

def seeded():
    keras.utils.clear_session()
    with keras.device("cpu"):
        return TorchStyle(keras.Sequential([
            keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64, "relu"),
            layers.BatchNormalization(), layers.Dropout(0.3, seed=5), layers.Dense(10),
        ]))

def numbered():
    return TorchStyle(keras.Sequential([
        keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10),
    ]))

def unbuilt():
    return TorchStyle(keras.Sequential([layers.Flatten(), layers.Dense(10)]))
"""


@pytest.fixture
def own(store, keras_model, tmp_path, monkeypatch):
    (tmp_path / "own_keras.py").write_text(SEEDED_DROPOUT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_keras", raising=False)
    return store


@pytest.mark.parametrize("factory", [FACTORY, "own_keras:seeded"])
def test_the_weights_go_from_the_range_test_to_the_training_and_to_any_other_build(own, factory):
    arguments = '{"width": 8}' if factory == FACTORY else "{}"
    task = ("--model", factory, "--model-args", arguments, "--init", "own", "--batch-size", 128)
    own.run("lrrt", *task, "--device", "cpu")
    own.run("train", "--model", factory, "--epochs", 4)
    lrrt, trained = own.one("lrrt"), own.one("train")

    first = own.history(trained, "train_loss")[1][0]
    assert first == own.history(lrrt, "train_loss")[1][0]
    assert trained.data.tags["lrrt.first_loss_equal"] == "true"
    assert trained.data.metrics["val_accuracy"] > 0.8

    # Weights, moving statistics and seed states.
    handoff = load_handoff(trust=factory)
    model = PreparedTask(replace(handoff.task, seed=1)).setup().model
    assert digest(model.state_dict()) != lrrt.data.tags["lrrt.weights_sha256"]
    handoff.load_weights(model)
    assert digest(model.state_dict()) == lrrt.data.tags["lrrt.weights_sha256"]

    if factory == FACTORY:
        # Not the pickle that needs this project and Keras to be loaded.
        (logged,) = trained.outputs.model_outputs
        uri = f"models:/{logged.model_id}"
        assert [*Path(mlflow.artifacts.download_artifacts(uri)).rglob("*.pt2")]
        images, labels = PreparedTask(Task()).data.val
        predicted = mlflow.pytorch.load_model(uri)(images.cpu()).argmax(dim=1)
        accuracy = (predicted == labels.cpu()).float().mean().item()
        assert accuracy == pytest.approx(trained.data.metrics["val_accuracy"], abs=1e-6)


def test_a_model_in_hand_is_tracked_and_its_weights_load_into_another_build(own, keras_model):
    model = keras_model.build(width=8)
    before = digest(model.state_dict())
    data = PreparedTask(Task()).data
    batches = DataLoader(TensorDataset(*data.train), 128, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    test = track_range_test(model, optimizer, nn.CrossEntropyLoss(), batches, iterations=60)
    run = own.one("lrrt")
    assert test.run_id == run.info.run_id
    assert run.data.tags["lrrt.weights_sha256"] == before == digest(model.state_dict())

    torch.manual_seed(9)
    other = keras_model.build(width=8)
    assert digest(other.state_dict()) != before
    load_handoff(test.run_id).load_weights(other)
    assert digest(other.state_dict()) == before


@pytest.mark.parametrize(("factory", "word"), [("numbered", "weights"), ("unbuilt", "trainable")])
def test_a_factory_that_cannot_be_handed_off_is_told_why(own, factory, word):
    outcome = own.run("lrrt", "--model", f"own_keras:{factory}", "--init", "own", code=2)
    outcome.names(word)
