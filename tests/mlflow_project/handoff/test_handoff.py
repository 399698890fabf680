import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from lrrt_stage import RULES, LRRTError, confidence, digest
from mlflow_project import load_handoff
from pipeline import PreparedTask, Task


def stored(run, name):
    """The artifact where the store keeps it."""
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


@pytest.fixture
def run(lrrt):
    return lrrt


@pytest.mark.starts_with("lrrt")
def test_it_carries_all_that_training_needs(store, run):
    handoff = load_handoff(run.info.run_id)
    assert handoff.task == Task(model="mlp", batch_size=128)
    assert handoff.weights_sha256 == run.data.tags["lrrt.weights_sha256"]
    assert (handoff.rule, handoff.device) == ("robust", "cpu")
    metrics = run.data.metrics
    assert handoff.range.min == metrics["suggested_lr_min"]
    assert handoff.range.max == metrics["suggested_lr_max"]
    assert handoff.confidence == confidence(handoff.curve)
    assert handoff.reading.suggestions.keys() == RULES.keys()
    assert handoff.confidence.low <= handoff.range.max <= handoff.confidence.high
    assert handoff.confidence.decades == pytest.approx(metrics["suggestion_decades"])
    assert str(handoff.confidence.verdict) == run.data.tags["lrrt.verdict"]
    assert handoff.curve.loss.tolist() == store.history(run, "train_loss")[1]

    prepared = PreparedTask(handoff.task)
    model = prepared.setup().model
    handoff.load_weights(model)
    assert digest(model.state_dict()) == handoff.weights_sha256


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("fraction", [0, 0.5])
def test_its_scheduler_is_torchs_one_cycle_over_the_range_to_train_in(run, fraction):
    handoff = load_handoff()
    assert handoff.narrowed() == handoff.narrowed("none", 0.5) == handoff.range
    narrowed = handoff.narrowed("top", fraction)
    assert narrowed.decades == pytest.approx((1 - fraction) * handoff.range.decades)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = handoff.scheduler(optimizer, 100, lr_range=narrowed if fraction else None)
    assert isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < 100 else None
    assert rates[0] == pytest.approx(narrowed.min)
    assert max(rates) == pytest.approx(narrowed.max)


@pytest.mark.starts_with("lrrt")
def test_latest_is_the_newest_finished_range_test_of_the_experiment(store, run):
    short = ("lrrt", *store.SMALL, "--iterations", 60)
    store.run(*short, "--lr-end", 1e-6, code=2)  # newer, but FAILED
    store.run("train", "--epochs", 1)  # newer, but no range test
    assert load_handoff("latest").run_id == run.info.run_id
    store.run(*short, "--seed", 1)
    assert load_handoff("latest").task.seed == 1


def test_latest_without_any_says_what_to_run(store):
    message = r"'test' in sqlite:.* lrrt .*MLFLOW_EXPERIMENT_NAME"
    with pytest.raises(LRRTError, match=message):
        load_handoff("latest")


@pytest.mark.parametrize("run_id", ["nonesuch", "", None, 3])
def test_a_run_that_does_not_exist_is_named(store, run_id):
    with pytest.raises(LRRTError, match=f"{run_id!r}.* id") as error:
        load_handoff(run_id)
    assert "\n" not in str(error.value)


@pytest.mark.starts_with("lrrt")
def test_a_run_of_another_stage_is_refused(store, run):
    with mlflow.start_run() as foreign:
        pass
    with pytest.raises(LRRTError, match="stage None: .*lrrt or test"):
        load_handoff(foreign.info.run_id)


def test_a_run_that_failed_is_refused_with_its_reason(store):
    store.run("lrrt", *store.SMALL, "--iterations", 20, "--lr-end", 1e-6, code=2)
    failed = store.one("lrrt").info.run_id
    with pytest.raises(LRRTError, match=r"FAILED .*lr_end"):
        load_handoff(failed)


@pytest.mark.starts_with("lrrt")
def test_altered_weights_are_refused(run):
    path = stored(run, "initial_weights.safetensors")
    arrays = load_file(path)
    name = sorted(arrays)[0]
    # One bit of one number.
    arrays[name].reshape(-1).view(np.uint8)[0] ^= 1
    save_file(arrays, path)
    with pytest.raises(LRRTError, match=r"initial_weights.safetensors of run \w+ .*altered"):
        load_handoff()


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("name", ["task.json", "suggestions.json", "curve.csv"])
def test_an_altered_file_is_refused(run, name):
    path = stored(run, name)
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(LRRTError, match=rf"{name} of run \w+ .*altered"):
        load_handoff()


TAGS = {
    "task.json": "lrrt.task_sha256",
    "suggestions.json": "lrrt.suggestions_sha256",
    "curve.csv": "lrrt.curve_sha256",
}


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("task.json", ""),
        ("task.json", "{"),
        ("task.json", "{}"),
        ("task.json", "[]"),
        ("task.json", '{"contract_version": 1}'),
        ("suggestions.json", ""),
        ("suggestions.json", "{}"),
        ("suggestions.json", '{"contract_version": 1, "range": null}'),
        ("curve.csv", ""),
        ("curve.csv", "iteration,lr,loss,smoothed_loss\n"),
        ("curve.csv", "iteration,lr,loss,smoothed_loss\n0,0.1,high,1\n"),
        ("curve.csv", "a,b\n1,2\n"),
    ],
)
def test_content_that_cannot_be_read_is_one_line(store, run, name, content):
    # With its digest, so that nothing but the content is wrong.
    stored(run, name).write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    mlflow.MlflowClient().set_tag(run.info.run_id, TAGS[name], digest)
    outcome = store.run("train", "--epochs", 1, code=2)
    outcome.names(name, run.info.run_id, "read", "run lrrt")
    assert "/tmp" not in outcome.error


@pytest.mark.starts_with("lrrt")
def test_a_loss_of_the_probe_that_was_nan_in_an_earlier_version_is_infinite(run):
    assert np.isnan(load_handoff().curve.probe_loss).any()  # where it was not evaluated
    path = stored(run, "task.json")
    content = json.loads(path.read_text("utf-8"))
    del content["range_test"]["ramp"]["probe_every"]
    path.write_text(json.dumps(content), "utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mlflow.MlflowClient().set_tag(run.info.run_id, TAGS["task.json"], digest)
    losses = load_handoff().curve.probe_loss
    assert np.isinf(losses).any()
    assert not np.isnan(losses).any()


@pytest.mark.starts_with("lrrt")
def test_weights_that_were_cut_short_name_the_run(store, run):
    path = stored(run, "initial_weights.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    outcome = store.run("train", "--epochs", 1, code=2)
    outcome.names("initial_weights.safetensors", run.info.run_id, "read", "run lrrt")


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("tag", ["lrrt.weights_sha256", *TAGS.values()])
def test_a_run_without_a_digest_is_refused(run, tag):
    mlflow.MlflowClient().delete_tag(run.info.run_id, tag)
    with pytest.raises(LRRTError, match="altered"):
        load_handoff()


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize(
    "name", ["initial_weights.safetensors", "task.json", "suggestions.json", "curve.csv"]
)
def test_a_missing_artifact_is_named(run, name):
    stored(run, name).unlink()
    with pytest.raises(LRRTError, match=f"no artifact {name}"):
        load_handoff()


@pytest.mark.starts_with("lrrt")
def test_a_newer_contract_is_refused(run):
    path = stored(run, "task.json")
    content = json.loads(path.read_text()) | {"contract_version": 3}
    path.write_text(json.dumps(content))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mlflow.MlflowClient().set_tag(run.info.run_id, "lrrt.task_sha256", digest)
    with pytest.raises(LRRTError, match="contract version 3.*2.*update"):
        load_handoff()


@pytest.mark.starts_with("lrrt")
def test_weights_that_do_not_fit_a_model_list_the_differences(run):
    with pytest.raises(LRRTError, match="weights do not fit .* absent in the weights"):
        load_handoff().load_weights(nn.Sequential(nn.Conv2d(1, 2, 3)))
    for no_model in ("x", None):
        with pytest.raises(LRRTError, match=r"the model is \w+: pass"):
            load_handoff().load_weights(no_model)


@pytest.mark.starts_with("main")
def test_a_run_that_goes_back_to_a_range_test_stands_for_it(store):
    lrrt = store.one("lrrt").info.run_id
    for stage in ("main", "refine", "train"):
        assert load_handoff(store.one(stage).info.run_id).run_id == lrrt
    store.run("train", "--lrrt-run-id", store.one("main").info.run_id, "--epochs", 1)
    assert store.runs("train")[0].data.tags["lrrt.source_run_id"] == lrrt


@pytest.mark.starts_with("lrrt")
def test_a_wrapped_model_is_told_to_be_loaded_before(run):
    model = nn.DataParallel(PreparedTask(load_handoff().task).setup().model)
    with pytest.raises(LRRTError, match="wrapped"):
        load_handoff().load_weights(model)
