import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

QUICK = ("--refine", "true", "--trials", 2, "--epochs", 2)


def children(store, parent):
    return {run.data.tags["lrrt.stage"]: run for run in store.children(parent)}


@pytest.mark.starts_with("main")
def test_the_parent_shows_the_result_of_all_steps(store):
    parent = store.one("main")
    steps = children(store, parent)
    assert set(steps) == {"lrrt", "refine", "train"}
    for name, run in steps.items():
        assert parent.data.tags[f"lrrt.{name}_run_id"] == run.info.run_id
    metrics = parent.data.metrics
    for name, step in (
        ("suggested_lr_max", "lrrt"), ("refined_lr_max", "refine"), ("narrowed_lr_max", "train"),
        ("val_accuracy", "train"), ("val_loss", "train"),
    ):  # fmt: skip
        assert metrics[name] == steps[step].data.metrics[name]
    assert "summary.png" in store.artifacts(parent)


@pytest.mark.starts_with("train")
def test_refinement_is_optional(store):
    assert set(children(store, store.one("main"))) == {"lrrt", "train"}
    metrics = store.one("train").data.metrics
    assert metrics["trained_lr_max"] == metrics["narrowed_lr_max"]


@pytest.mark.starts_with("train")
def test_the_description_tells_a_part_of_the_range_from_all_of_it(store):
    described = "mlflow.note.content"
    assert "with these learning rates." in store.one("main").data.tags[described]
    short = (*store.SMALL, "--epochs", 2, "--narrowing-fraction", 0.3)
    store.run("main", *short, "--refine", "true", "--trials", 1)
    suggested, trained = (
        [store.runs("main")[0].data.metrics[f"{name}_lr_{end}"] for end in ("min", "max")]
        for name in ("suggested", "trained")
    )
    # One trial, of the narrowed range itself.
    assert trained[0] == pytest.approx(suggested[0])
    assert trained[1] == pytest.approx(suggested[1] / 10**0.3)
    assert "found in it." in store.runs("main")[0].data.tags[described]
    assert ", inside the range that " in store.one("refine").data.tags[described]
    store.run("main", *short)
    assert " inside it." in store.runs("main")[0].data.tags[described]


def test_options_of_a_search_that_is_not_asked_for_are_named(store):
    outcome = store.run("main", *store.SMALL, "--epochs", 1, "--trials", 3, "--metric", "accuracy")
    assert "without refine=true there is no search: trials=3, metric=accuracy has no" in outcome.err
    assert set(children(store, store.one("main"))) == {"lrrt", "train"}


@pytest.mark.starts_with("main")
def test_finished_steps_are_reused_on_request(store):
    first = store.one("main")
    outcome = store.run("main", *store.SMALL, *QUICK, "--reuse", "true")
    second = store.runs("main")[0]
    assert not children(store, second)
    for name in ("lrrt", "refine", "train"):
        tag = f"lrrt.{name}_run_id"
        assert second.data.tags[tag] == first.data.tags[tag]
        assert re.search(f"{name}.*{first.data.tags[tag]}", outcome.err)
    for row in ("suggested LR range", "refined LR range", "trained LR range"):
        assert row in outcome.out
    assert "narrowed LR range" not in outcome.out  # it is the suggested one
    assert f"{second.data.metrics['val_accuracy']:.4g}" in outcome.out
    assert "mlflow ui --backend-store-uri sqlite:///" in outcome.out
    assert second.data.metrics == first.data.metrics


@pytest.mark.starts_with("main")
def test_a_change_runs_the_steps_that_depend_on_it_and_no_others(store):
    store.run("main", *store.SMALL, *QUICK, "--reuse", "true", "--epochs", 3)
    assert set(children(store, store.runs("main")[0])) == {"train"}
    store.run("main", *store.SMALL, *QUICK, "--reuse", "true", "--seed", 1)
    assert set(children(store, store.runs("main")[0])) == {"lrrt", "refine", "train"}


def test_a_step_that_fails_fails_the_chain_with_its_reason_and_keeps_what_was_done(store):
    outcome = store.run("main", *store.SMALL, *QUICK, "--storage", "nosuchdb://x", code=2)
    parent, steps = store.one("main"), children(store, store.one("main"))
    assert parent.info.status == steps["refine"].info.status == "FAILED"
    assert "nosuchdb" in outcome.error
    assert "nosuchdb" in parent.data.tags["lrrt.error"]
    assert steps["lrrt"].info.status == "FINISHED"


def test_the_parent_has_all_options_even_if_the_chain_fails(store):
    options = ("--lr-end", 1e-6, "--beta", 0.97, "--rule", "valley", "--search-seed", 4)
    store.run("main", *store.SMALL, *QUICK, "--epochs", 6, *options, code=2)
    parent = store.one("main")
    assert parent.info.status == "FAILED"
    expected = {
        "model": "mlp", "batch_size": "128", "device": "cpu", "lr_end": "1e-06", "beta": "0.97",
        "rule": "valley", "search_seed": "4", "trials": "2", "epochs": "6", "schedule": "one-cycle",
        "trial_epochs": "2",  # a quarter of the training's, rounded
    }  # fmt: skip
    assert expected.items() <= parent.data.params.items()
    # What is a default is in the file alone.
    assert "narrowing" not in parent.data.params
    options = store.json(parent, "options.json")
    assert (options["narrowing"], options["refine"], options["reuse"]) == ("top", True, False)
    assert options["beta"] == 0.97


@pytest.mark.starts_with("main")
def test_refinement_takes_the_schedule_of_the_training(store):
    schedule = ("--schedule", "triangular", "--epochs", 6)
    store.run("main", *store.SMALL, *QUICK, "--reuse", "true", *schedule)
    # The other schedule is another search.
    steps = children(store, store.runs("main")[0])
    assert set(steps) == {"refine", "train"}
    assert {run.data.params["schedule"] for run in steps.values()} == {"triangular"}
    for trial in store.runs("trial")[:2]:
        rates = store.history(trial, "lr")[1]
        assert len(store.history(trial, "val_loss")[1]) == 2  # a quarter of the training's, rounded
        # Four triangles start where they end; one cycle ends far below.
        assert min(rates) == rates[0] == pytest.approx(trial.data.metrics["trained_lr_min"])


@pytest.mark.starts_with("lrrt")
def test_other_weights_under_the_same_path_are_not_mistaken_for_the_same(store, lrrt):
    first = load_file(store.file(lrrt, "initial_weights.safetensors"))
    second = {name: 0.9 * array for name, array in first.items()}
    chain = ("main", *store.SMALL, "--epochs", 1, "--reuse", "true")
    for arrays in (first, first, second):
        save_file(arrays, "start.safetensors")
        store.run(*chain, "--init", "file:start.safetensors")
    steps = [set(children(store, parent)) for parent in reversed(store.runs("main"))]
    assert steps == [{"lrrt", "train"}, set(), {"lrrt", "train"}]


@pytest.mark.starts_with("train")
def test_a_model_is_registered_even_if_the_same_was_trained_before(store):
    chain = ("main", *store.SMALL, "--epochs", 8, "--reuse", "true")
    store.run(*chain, "--register", "mine")
    # A model is registered by the training that logs it.
    assert set(children(store, store.runs("main")[0])) == {"train"}
    names = {model.name for model in mlflow.search_registered_models()}
    assert names == {"digits", "mine"}


def test_a_folder_of_images_beside_the_command_is_a_dataset(store):
    pixels = np.random.default_rng(0)
    for name, low, high in (("dark", 0, 120), ("light", 135, 255)):
        folder = Path("photos") / name
        folder.mkdir(parents=True)
        for number in range(20):
            image = pixels.integers(low, high, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
    task = ("--dataset", "imagefolder:photos", "--dataset-args", '{"size": 8}', "--model", "mlp")
    options = ("--batch-size", 8, "--rule", "steepest", "--device", "cpu")
    store.run("main", *task, *options, *QUICK, "--reuse", "true")
    assert store.one("main").info.status == "FINISHED"
    assert store.one("lrrt").data.params["dataset"] == "imagefolder:photos"


def test_it_tells_of_attempts_that_were_lost(store, monkeypatch):
    # More than the learning rate at which the loss rises.
    monkeypatch.setattr("lrrt_stage.rules.robust.PART_OF_RISE", 0.4)
    outcome = store.run("main", *store.SMALL, "--epochs", 8)
    main, train = store.one("main"), store.one("train")
    metrics = main.data.metrics
    lost = int(metrics["attempts"]) - 1
    assert lost > 0
    assert metrics["trained_lr_max"] == train.data.metrics["trained_lr_max"]
    assert metrics["trained_lr_max"] == pytest.approx(metrics["suggested_lr_max"] / 3**lost)
    described = main.data.tags["mlflow.note.content"]
    assert re.search(r"after (one attempt|2 attempts) with higher ones", described)
    assert re.search(rf"attempts +│ {lost + 1} ", outcome.out)
    assert "best validation loss" in outcome.out
    assert metrics["best_val_loss"] == min(store.history(train, "val_loss")[1][-8:])
