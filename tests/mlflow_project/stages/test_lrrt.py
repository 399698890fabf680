import hashlib
import re
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from safetensors.numpy import load_file, save_file

from lrrt_stage import RULES, LRCurve, Reading, Verdict
from mlflow_project.stages.lrrt import _notes
from pipeline import Task

# The names are a contract with other projects: written out here, not imported.
ARTIFACTS = {
    "initial_weights.safetensors", "task.json", "curve.csv", "suggestions.json",
    "lrrt_curve.png", "options.json",
}  # fmt: skip


@pytest.mark.starts_with("lrrt")
def test_a_range_test_run_publishes_the_contract(store):
    run = store.one("lrrt")
    assert run.info.status == "FINISHED"
    assert store.artifacts(run) == ARTIFACTS
    metrics = run.data.metrics
    assert {"suggested_lr_min", "suggested_lr_max", "lr", "train_loss", "smoothed_loss"} <= {
        *metrics
    }
    assert {f"suggestion.{rule}" for rule in RULES} <= {*metrics}

    suggestions = store.json(run, "suggestions.json")
    assert suggestions["rule"] == "robust"
    assert set(suggestions["rules"]) == set(RULES)
    assert suggestions["range"]["max"] == metrics["suggested_lr_max"]
    assert suggestions["contract_version"] == 2
    task = store.json(run, "task.json")
    assert task["contract_version"] == 2
    assert (task["task"]["model"], task["task"]["batch_size"]) == ("mlp", 128)
    assert task["environment"]["torch"].startswith("2.")


@pytest.mark.starts_with("lrrt")
def test_the_digest_tag_is_over_the_published_weights(store):
    run = store.one("lrrt")
    arrays = load_file(store.file(run, "initial_weights.safetensors"))
    sha = hashlib.sha256()
    for name in sorted(arrays):
        shape = ",".join(map(str, arrays[name].shape))
        sha.update(f"{name}\0{arrays[name].dtype}\0{shape}\0".encode() + arrays[name].tobytes())
    assert run.data.tags["lrrt.weights_sha256"] == sha.hexdigest()


@pytest.mark.starts_with("lrrt")
def test_the_curve_and_the_metrics_are_the_same_numbers_at_the_same_steps(store):
    run = store.one("lrrt")
    curve = store.csv(run, "curve.csv")
    assert list(curve) == [
        "iteration",
        "lr",
        "loss",
        "smoothed_loss",
        "probe_loss",
        "probe_baseline",
    ]
    for metric, column in (
        ("lr", "lr"), ("train_loss", "loss"), ("smoothed_loss", "smoothed_loss"),
        ("probe_loss", "probe_loss"),
    ):  # fmt: skip
        steps, values = store.history(run, metric)
        evaluated = curve[column].dropna()
        assert steps == curve["iteration"][evaluated.index].tolist()
        assert np.allclose(values, evaluated, rtol=1e-12)
    assert np.allclose(store.history(run, "log10_lr")[1], np.log10(curve["lr"]))


@pytest.mark.starts_with("lrrt")
def test_a_run_says_what_it_is(store):
    run = store.one("lrrt")
    assert run.info.run_name == "lrrt digits mlp batch 128 seed 0"
    assert f"--lrrt-run-id {run.info.run_id}" in run.data.tags["mlflow.note.content"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert run.data.params["seed"] == "0"
    # 11 batches an epoch: 1,437 training images in batches of 128.
    iterations = len(store.history(run, "lr")[0])
    assert run.data.metrics["range_test_epochs"] == pytest.approx(iterations / 11)


@pytest.mark.starts_with("lrrt")
def test_the_same_seed_gives_the_same_run_and_another_seed_another(store):
    for seed in (0, 1):
        store.run("lrrt", *store.SMALL, "--seed", seed)
    other, again, first = store.runs("lrrt")
    digest = "lrrt.weights_sha256"
    assert first.data.tags[digest] == again.data.tags[digest] != other.data.tags[digest]
    losses = [store.history(run, "train_loss")[1] for run in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


def test_hundreds_of_iterations_are_logged_in_a_few_calls(store, monkeypatch):
    calls = []
    methods = [(MlflowClient, name) for name in ("log_batch", "log_metric", "log_param")]
    methods += [(LocalArtifactRepository, name) for name in ("log_artifact", "log_artifacts")]
    for kind, name in methods:
        real = getattr(kind, name)

        def counted(*args, _real=real, _name=name, **kwargs):
            calls.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(kind, name, counted)
    options = ("--iterations", 300, "--stop-multiple", "none", "--lr-end", 0.1)
    store.run("lrrt", *store.SMALL, *options)
    steps, _ = store.history(store.one("lrrt"), "smoothed_loss")
    assert len(steps) == 300
    # Curves; parameters, suggestions; all options as a file; tags when the run opens, when the
    # weights are there, with the suggestions, and at the end.
    assert calls.count("log_batch") <= 11
    assert calls.count("log_artifact") == 6  # one per file
    assert len(calls) <= 17


def test_the_rule_is_chosen_by_name_and_the_others_are_logged_all_the_same(store):
    store.run("lrrt", *store.SMALL, "--rule", "steepest")
    run = store.one("lrrt")
    assert run.data.metrics["suggested_lr_max"] == run.data.metrics["suggestion.steepest"]
    assert run.data.tags["lrrt.rule"] == "steepest"
    assert "suggestion.article" in run.data.metrics


def test_a_rule_without_an_answer_says_why_and_another_takes_its_place(store):
    # The ramp ends while the loss falls.
    outcome = store.run("lrrt", *store.SMALL, "--lr-end", 0.07, "--rule", "article")
    reason = next(line for line in outcome.err.splitlines() if "article" in line)
    assert "0.07" in reason
    assert "lr_end" in reason
    assert "robust" in outcome.err
    run = store.one("lrrt")
    assert run.info.status == "FINISHED"
    assert run.data.tags["lrrt.rule"] == "robust"
    assert run.data.tags["lrrt.verdict"] in outcome.err
    assert "suggestion.article" not in run.data.metrics


def test_an_uncertain_suggestion_is_told_with_how_to_ask_more_tests(store):
    noisy = ("lrrt", "--model", "mlp", "--batch-size", 2, "--iterations", 30, "--device", "cpu")
    told = "unclear reading"
    more = "--vary initializations"
    alone = store.run(*noisy).err
    assert told in alone
    assert more in alone
    kept = store.file(store.one("lrrt"), "initial_weights.safetensors")
    # Of given weights there is one initialisation.
    given = store.run(*noisy, "--init", f"file:{kept}").err
    assert told in given
    assert more not in given


def test_without_any_suggestion_the_run_fails_and_keeps_weights_and_curve(store):
    outcome = store.run("lrrt", *store.SMALL, "--lr-end", 1e-6, code=2)
    outcome.names("robust", "1e-06", "lr_end")
    run = store.one("lrrt")
    assert run.info.status == "FAILED"
    assert run.data.tags["lrrt.error"] in outcome.error
    assert store.artifacts(run) == ARTIFACTS
    assert len(store.history(run, "train_loss")[0]) == 100


def test_ctrl_c_keeps_the_weights_and_the_curve_so_far(store, monkeypatch):
    class Bench(sys.modules["mlflow_project.stages.lrrt"].PreparedTask):
        def range_test(self, state, plan, progress):
            def interrupting(done, total):
                if done == 31:
                    raise KeyboardInterrupt

            return super().range_test(state, plan, interrupting)

    monkeypatch.setattr(sys.modules["mlflow_project.stages.lrrt"], "PreparedTask", Bench)
    outcome = store.run("lrrt", *store.SMALL, code=130)
    assert re.search("Interrupted.* 31 iterations", outcome.err)
    run = store.one("lrrt")
    assert run.info.status == "KILLED"
    assert len(store.csv(run, "curve.csv")) == 31
    assert len(store.history(run, "train_loss")[0]) == 31
    assert "initial_weights.safetensors" in store.artifacts(run)


def test_the_validation_loss_is_published_with_the_curve(store):
    store.run("lrrt", *store.SMALL, "--validation", "sample", "--lr-end", 0.01)
    run = store.one("lrrt")
    frame = store.csv(run, "curve.csv")
    assert store.history(run, "val_loss") == (list(range(100)), frame.val_loss.tolist())
    looks = frame.full_val_loss.dropna()
    assert store.history(run, "full_val_loss") == (looks.index.tolist(), looks.tolist())
    assert 1 <= len(looks) <= 5
    assert run.data.params["validation"] == "sample"


@pytest.mark.starts_with("lrrt")
def test_weights_come_from_a_file_or_from_a_run(store):
    short = (*store.SMALL, "--iterations", 30, "--rule", "steepest", "--seed", 5)
    source = store.one("lrrt")
    file = store.file(source, "initial_weights.safetensors")
    store.run("lrrt", *short, "--init", f"file:{file}")
    store.run("lrrt", *short, "--init", f"run:{source.info.run_id}")
    from_run, from_file, _ = store.runs("lrrt")
    for run in (from_run, from_file):
        assert run.data.tags["lrrt.weights_sha256"] == source.data.tags["lrrt.weights_sha256"]
    assert from_run.data.tags["lrrt.source_run_id"] == source.info.run_id


@pytest.mark.starts_with("train")
def test_a_pretrained_start_takes_the_trained_weights_of_a_training_run(store):
    trained = store.one("train")
    store.run("lrrt", *store.SMALL, "--init", f"run:{trained.info.run_id}", "--rule", "steepest")
    pretrained = store.runs("lrrt")[0]
    _, losses = store.history(pretrained, "train_loss")
    assert losses[0] < 0.5 < 2 < store.history(store.runs("lrrt")[1], "train_loss")[1][0]


@pytest.mark.starts_with("train")
def test_trained_weights_that_were_altered_are_refused_as_a_start(store):
    trained = store.one("train")
    start = ("lrrt", *store.SMALL, "--init", f"run:{trained.info.run_id}", "--rule", "steepest")
    path = Path(trained.info.artifact_uri.removeprefix("file://")) / "final_weights.safetensors"
    whole = path.read_bytes()
    arrays = load_file(path)
    first = sorted(arrays)[0]
    arrays[first] = arrays[first] + 1
    save_file(arrays, path)
    named = ("final_weights.safetensors", trained.info.run_id, "train")
    store.run(*start, code=2).names("altered", *named)
    path.write_bytes(whole[:200])
    store.run(*start, code=2).names("read", *named)


@pytest.mark.starts_with("refine")
def test_a_start_from_a_run_that_has_no_weights_to_give_is_refused(store):
    refine = store.one("refine").info.run_id
    start = ("lrrt", *store.SMALL, "--iterations", 20, "--lr-end", 1e-6)
    store.run(*start, "--init", f"run:{refine}", code=2).names(refine, "refine", "train", "lrrt")
    store.run(*start, code=2)
    failed = store.runs("lrrt")[0].info.run_id
    store.run(*start, "--init", f"run:{failed}", code=2).names(failed, "FAILED")
    store.run(*start, "--init", "run:latest", code=2).names("run:latest", "id")


def test_runs_go_to_the_experiment_that_is_named(store, tmp_path):
    store.run(
        "lrrt", *store.SMALL, "--iterations", 20, "--rule", "valley", "--experiment", "another"
    )
    assert len(store.runs("lrrt")) == 1
    assert mlflow.get_experiment_by_name("another") is not None


@pytest.mark.parametrize(("scale", "helps"), [(0.0, False), (3.0, True)])
def test_more_evaluations_are_advised_where_they_narrow_the_interval(scale, helps):
    """Not where the doubt is another one: here, that only the probe fell."""
    x = np.arange(100)
    noise = np.random.default_rng(3).normal(0, scale, 100)
    losses = 4 - 3 / (1 + np.exp((50 - x) / 3)) + np.exp(np.minimum(x - 80, 20) / 4) + noise
    probe = np.where(x % 2, np.nan, losses)
    reading = Reading.from_curve(LRCurve(10 ** (-7 + x / 10), np.full(100, 4.0), probe_loss=probe))
    assert reading.final.confidence.verdict is Verdict.NOISY
    notes = " ".join(_notes(Task(), "robust", reading))
    assert ("--probe-every 1" in notes) is helps
    assert "--vary initializations" in notes
