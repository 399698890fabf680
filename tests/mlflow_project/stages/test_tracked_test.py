"""Tracked range tests of objects in hand, and trainings of one's own that follow from them."""

from __future__ import annotations

import json

import mlflow
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRange, LRRTError, NoSuggestion, digest
from mlflow_project import load_handoff, track_range_test
from tests.stores import shell

ITERATIONS = 40


def objects(seed=0):
    """A model, an optimizer of two groups, a loss, and batches, which are the same for a seed."""
    torch.manual_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16).float(), torch.tensor(labels))
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.RMSprop(groups, lr=0.01, momentum=0.5)
    return model, optimizer, nn.CrossEntropyLoss(), DataLoader(data, 64, shuffle=True)


def probe():
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels[:80] / 16).float(), torch.tensor(labels[:80])


def tracked(**more):
    return track_range_test(*objects(), iterations=ITERATIONS, probe=probe(), **more)


def test_it_publishes_what_the_stage_does_and_returns_what_another_process_loads(store):
    model, optimizer, loss_fn, batches = objects()
    before, state = digest(model.state_dict()), torch.get_rng_state()
    handoff = track_range_test(
        model, optimizer, loss_fn, batches, iterations=ITERATIONS, probe=probe(), rule="steepest"
    )

    assert digest(model.state_dict()) == before == handoff.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)
    run = store.one("lrrt")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lrrt Sequential RMSprop"
    assert store.artifacts(run) >= {
        *("initial_weights.safetensors", "task.json", "curve.csv", "suggestions.json"),
        *("lrrt_curve.png", "options.json"),
    }
    params = run.data.params
    assert (params["model"], params["optimizer"], params["batch_size"]) == (
        *("Sequential", "RMSprop", "64"),
    )
    assert (params["parameter_groups"], params["optimizer.momentum"]) == ("2", "0.5")
    assert store.json(run, "task.json")["task"] is None
    assert store.json(run, "task.json")["objects"]["loss"] == "CrossEntropyLoss"
    assert handoff.curve.loss.tolist() == store.history(run, "train_loss")[1]
    loaded = load_handoff()
    assert loaded.run_id == handoff.run_id == run.info.run_id
    assert (loaded.curve, loaded.range, loaded.rule) == (handoff.curve, handoff.range, "steepest")
    assert "Sequential RMSprop" in run.data.tags["mlflow.note.content"]


def test_it_repeats_bit_for_bit(store):
    first, second = tracked(), tracked()

    assert first.curve == second.curve
    assert first.run_id != second.run_id


def test_it_is_a_child_of_the_active_run_which_stays_active(store):
    with mlflow.start_run() as parent:
        handoff = tracked(name="before training")
        assert mlflow.active_run().info.run_id == parent.info.run_id

    run = mlflow.get_run(handoff.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.run_name == "lrrt before training"


def test_a_data_set_is_an_input_of_the_run(store):
    pixels, labels = load_digits(return_X_y=True)
    dataset = mlflow.data.from_numpy(pixels, targets=labels, name="digits")
    handoff = tracked(dataset=dataset)

    (logged,) = store.one("lrrt").inputs.dataset_inputs
    assert logged.dataset.name == "digits"
    assert handoff.data_sha256 == logged.dataset.digest


def test_a_learner_of_fastai_is_tracked_too(store):
    fastai = pytest.importorskip("fastai.vision.all")
    from lrrt_stage.adapters import from_fastai

    model, _, loss_fn, loader = objects()
    data = fastai.DataLoaders.from_dsets(loader.dataset, loader.dataset, bs=64, device="cpu")
    learner = fastai.Learner(data, model, loss_fn)
    handoff = track_range_test(**from_fastai(learner), iterations=ITERATIONS)

    assert handoff.weights_sha256 == digest(model.state_dict())
    assert store.one("lrrt").data.params["model"] == "Sequential"


def test_a_failure_ends_the_run_with_its_reason_and_keeps_the_weights(store):
    model, optimizer, _, batches = objects()
    with pytest.raises(LRRTError, match="the loss is Tensor"):
        track_range_test(model, optimizer, nn.CrossEntropyLoss(reduction="none"), batches)

    run = store.one("lrrt")
    assert run.info.status == "FAILED"
    assert "the loss is Tensor" in run.data.tags["lrrt.error"]
    assert "initial_weights.safetensors" in store.artifacts(run)


def test_a_curve_without_a_suggestion_is_kept(store):
    model, optimizer, _, batches = objects()
    with pytest.raises(NoSuggestion):
        track_range_test(
            model, optimizer, lambda o, y: o.square().mean() * 0 + o.mean() * 0, batches
        )

    run = store.one("lrrt")
    assert run.info.status == "FAILED"
    assert {"curve.csv", "suggestions.json"} <= store.artifacts(run)


def test_without_a_probe_the_verdict_says_what_was_read(store, capfd):
    handoff = track_range_test(*objects(), iterations=ITERATIONS)

    assert store.one("lrrt").data.tags["lrrt.verdict"].endswith("(training loss)")
    assert repr(handoff).endswith("(training loss))")
    assert "held-out examples" in capfd.readouterr().err


def test_unknown_options_are_refused_before_a_run(store):
    with pytest.raises(LRRTError, match="unknown rule 'robsut'"):
        tracked(rule="robsut")
    assert store.runs() == []


def test_representations_are_one_line(store):
    handoff = tracked()

    for text in (repr(handoff), repr(handoff.curve)):
        assert "\n" not in text
        assert len(text) < 120
    assert handoff.run_id in repr(handoff)


class TestTraining:
    def test_a_training_of_ones_own_has_the_lineage_and_can_be_compared(self, store):
        with mlflow.start_run() as one:
            tracked().track_training()
        with mlflow.start_run() as other:
            handoff = tracked()
            handoff.track_training(LRRange(0.001, 0.01))

        data = mlflow.get_run(other.info.run_id).data
        assert data.tags["lrrt.source_run_id"] == handoff.run_id
        assert data.tags["lrrt.weights_sha256"] == handoff.weights_sha256
        assert data.metrics["trained_lr_max"] == 0.01
        assert data.metrics["narrowed_lr_max"] == handoff.narrowed().max
        assert load_handoff(other.info.run_id).run_id == handoff.run_id
        compared = store.run("compare", one.info.run_id, other.info.run_id, "--output-json", "-")
        tests = json.loads(compared.out)["tests"]
        assert tests[1]["lrrt_run_id"] == handoff.run_id

    def test_what_is_no_range_is_refused_before_the_run_is_marked(self, store):
        handoff = tracked()
        with mlflow.start_run() as run, pytest.raises(LRRTError, match="lr_range is tuple"):
            handoff.track_training((0.01, 0.1))
        assert "lrrt.stage" not in mlflow.get_run(run.info.run_id).data.tags
        with pytest.raises(LRRTError, match="total_steps=0"):
            handoff.scheduler(torch.optim.SGD([torch.ones(1, requires_grad=True)]), 0)

    def test_outside_of_a_run_there_is_nothing_to_mark(self, store):
        handoff = tracked()
        with pytest.raises(LRRTError, match=r"no active run: .* mlflow.start_run\(\)"):
            handoff.track_training()

    def test_it_has_no_recipe_to_be_run_again(self, store):
        with mlflow.start_run() as training:
            handoff = tracked()
            handoff.track_training()

        for command in (("train",), ("refine",), ("check",), ("check", "--baseline", "latest")):
            store.run(*command, code=2).names(handoff.run_id, "objects in hand", "--setup")
        named = store.run("check", "--baseline", training.info.run_id, code=2)
        named.names("objects in hand")
        study = ("study", "--kind", "data-order", "--tests", 2, "--resume", handoff.run_id)
        store.run(*study, *store.SMALL, code=2).names(handoff.run_id, "objects in hand", "--setup")

    def test_the_check_takes_the_rate_in_use_from_a_training_of_ones_own(self, store):
        store.run("lrrt", *store.SMALL)
        with mlflow.start_run() as training:
            load_handoff().track_training(LRRange(0.01, 0.05))
        store.run("check", "--output-json", "-", "--device", "cpu")

        check = store.one("check")
        assert check.data.tags["lrrt.baseline_run_id"] == training.info.run_id
        assert check.data.metrics["lr_in_use"] == 0.05


RANKS = """
import sys, torch, mlflow
from torch import distributed
from tests.mlflow_project.stages.test_tracked_test import ITERATIONS, objects, probe
from mlflow_project import track_range_test
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
model, optimizer, good, batches = objects()
for loss_fn in (torch.nn.CrossEntropyLoss(reduction="none"), good):
    try:
        test = track_range_test(
            model, optimizer, loss_fn, batches, iterations=ITERATIONS, probe=probe()
        )
        print(test.run_id, test.range)
    except ValueError as error:
        print(error)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_rank_0_alone_publishes_and_all_ranks_get_the_hand_off_or_the_error(store, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "ranks.py").write_text(RANKS, "utf-8")
    uri = mlflow.get_tracking_uri()

    def run(rank):
        command = ("python", "ranks.py", str(rank), str(tmp_path / "meet"))
        variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "test"}
        return shell(tmp_path, *command, **variables)

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(run, (0, 1))
    told, of_rank_1 = (each.stdout.splitlines()[-2:] for each in (first, second))
    assert len(told) == len(of_rank_1) == 2, first.stderr
    assert "the loss is Tensor" in told[0]
    assert of_rank_1[0] in (told[0], f"on rank 0: {told[0]}")
    good, bad = store.runs("lrrt")
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert told[1] == of_rank_1[1]
    assert good.info.run_id in told[1]
