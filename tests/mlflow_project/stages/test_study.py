"""`study`: what its runs publish."""

import html
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from lrrt_stage import digest
from lrrt_stage.state import weights

QUICK = ("--iterations", 60, "--batch-size", 128, "--device", "cpu")
STUDY = ("study", "--model", "mlp", *QUICK)


@pytest.fixture
def threads():
    """One thread, as the tests of a study have: sums over several differ in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.starts_with("study")
def test_a_study_is_a_run_with_a_child_for_each_test(store):
    run = store.one("study")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "study initializations digits mlp"
    files = store.artifacts(run)
    assert {"study.csv", "tests.csv", "findings.json", "report.html"} <= files
    pictures = {Path(name).stem for name in files if name.endswith(".png")}
    assert pictures >= {"curves", "ranges"}
    assert {f"{name}.svg" for name in pictures} <= files

    children = {each.info.run_name: each for each in store.children(run, "test")}
    names = [f"seed {seed}" for seed in range(4)]
    assert sorted(children) == [f"test {name}" for name in names]
    frame, tests = store.csv(run, "study.csv"), store.csv(run, "tests.csv")
    assert list(frame["test"].unique()) == names == list(tests["test"])
    for name, child in children.items():
        rows = frame[frame["test"] == name.removeprefix("test ")]
        metrics = {"loss": "train_loss"}
        for column in ("lr", "loss", "smoothed_loss", "val_loss"):
            steps, values = store.history(child, metrics.get(column, column))
            assert rows["iteration"].tolist() == steps
            assert rows[column].tolist() == values
        looks = rows[rows["full_val_loss"].notna()]
        steps, values = store.history(child, "full_val_loss")
        assert (looks["iteration"].tolist(), looks["full_val_loss"].tolist()) == (steps, values)

    # The median and the pairs, worked out from the children alone.
    low, high = (
        np.array([each.data.metrics[f"suggested_lr_{end}"] for each in children.values()])
        for end in ("min", "max")
    )
    assert run.data.metrics["max_median"] == pytest.approx(np.median(high))
    apart = [low[i] > high[j] or low[j] > high[i] for i, j in combinations(range(4), 2)]
    assert run.data.metrics["share_disjoint"] == pytest.approx(np.mean(apart))
    assert run.data.metrics["failed_tests"] == 0
    assert sorted(tests["lr_max"]) == pytest.approx(sorted(high))
    report = Path(store.file(run, "report.html")).read_text(encoding="utf-8")
    for text in (run.data.tags["mlflow.note.content"], report):
        assert f"{np.median(high):.3g}" in text
        assert "4 tests" in text


@pytest.mark.unabridged
@pytest.mark.starts_with("study")
def test_a_test_publishes_what_a_range_test_does_but_its_page(store, threads):
    seeds = ("--seed", 1, "--data-seed", 1)
    store.run("lrrt", *QUICK, "--model", "mlp", *seeds, "--validation", "sample")
    alone = store.one("lrrt")
    (child,) = [each for each in store.runs("test") if each.info.run_name == "test seed 1"]
    assert store.artifacts(alone) - store.artifacts(child) == {"options.json"}
    assert child.data.metrics.items() >= alone.data.metrics.items()
    for metric in ("lr", "train_loss", "smoothed_loss", "val_loss", "full_val_loss"):
        assert store.history(child, metric) == store.history(alone, metric)
    for tag in ("lrrt.weights_sha256", "lrrt.suggestions_sha256", "lrrt.rule", "lrrt.stop"):
        assert child.data.tags[tag] == alone.data.tags[tag]
    state = weights.load(Path(store.file(child, "initial_weights.safetensors")))
    assert digest(state) == child.data.tags["lrrt.weights_sha256"]
    assert child.data.params.items() >= {"seed": "1", "data_seed": "1"}.items()


@pytest.mark.starts_with("study")
def test_training_goes_on_from_a_test_by_its_id_but_latest_is_never_one(store, threads):
    child = store.runs("test")[0]
    store.run("train", code=2).names("lrrt")
    store.run("train", "--lrrt-run-id", child.info.run_id, "--epochs", 1)
    run = store.runs("train")[0]
    assert run.data.tags["lrrt.source_run_id"] == child.info.run_id
    assert run.data.tags["lrrt.weights_sha256"] == child.data.tags["lrrt.weights_sha256"]
    first = store.history(run, "train_loss")[1][0]
    assert first == store.history(child, "train_loss")[1][0]
    # Where a range test is asked for, other stages stay refused.
    study = store.one("study").info.run_id
    store.run("train", "--lrrt-run-id", study, code=2).names(study, "'study'", "lrrt or test")


@pytest.mark.unabridged
@pytest.mark.starts_with("study")
def test_results_do_not_depend_on_the_number_of_workers(store):
    options = (*STUDY, "--tests", 4, "--validation", "sample", "--workers", 2)
    outcome = store.run(*options)
    assert "\x1b" not in outcome.out + outcome.err  # no bars where there is no terminal
    one, two = store.runs("study")[1], store.runs("study")[0]
    assert two.info.run_id in outcome.out
    assert len(store.runs("test")) == 8
    contents = [Path(store.file(run, "study.csv")).read_bytes() for run in (one, two)]
    assert contents[0] == contents[1]
    assert two.data.metrics == one.data.metrics


def test_mismatch_trains_the_weights_of_its_tests_with_their_ranges(store):
    store.run(*STUDY, "--kind", "mismatch", "--tests", 4, "--workers", 1, "--epochs", 2)
    mismatch = store.one("study")
    tests = store.csv(mismatch, "tests.csv")
    assert len(store.runs("test")) == 4
    trainings = store.children(mismatch, "training")
    assert len(trainings) == 4
    assert {each.data.metrics["trained_lr_max"] for each in trainings} <= {*tests["lr_max"]}
    assert len({each.data.metrics["trained_lr_max"] for each in trainings}) == 2
    for each in trainings:
        assert store.history(each, "train_loss")[0] == list(range(22))
        test = next(
            t for t in store.runs("test") if t.data.params["seed"] == each.data.params["seed"]
        )
        # From the very weights of the test, on its first batch.
        first = store.history(each, "train_loss")[1][0]
        assert first == store.history(test, "train_loss")[1][0]


@pytest.mark.starts_with("study")
def test_a_report_needs_no_network_and_says_what_was_found(store):
    run = store.one("study")
    report = Path(store.file(run, "report.html")).read_text(encoding="utf-8")
    assert "<script" not in report
    for sentence in store.json(run, "findings.json")["sentences"]:
        assert html.escape(sentence) in report
