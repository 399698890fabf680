"""Runs of contract version 1, as files that its code published, are as good as those of today."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from lrrt_stage import LRRTError, RangeTestOptions, digest
from mlflow_project import load_handoff

RUNS = Path(__file__).parent / "version_1"
# `longer` has 300 iterations, and so the curve of a reference ramp; `epoch` has `iterations` null.
NAMES = ["default", "epoch", "longer", "several"]


@pytest.fixture
def recreate(store):
    """Recreate a run in the test's store; return it."""

    def make(name):
        published = json.loads((RUNS / name / "run.json").read_text(encoding="utf-8"))
        with mlflow.start_run() as run:
            mlflow.set_tags(published["tags"])
            mlflow.log_metrics(published["metrics"])
            target = Path(run.info.artifact_uri.removeprefix("file://"))
            shutil.copytree(RUNS / name, target, dirs_exist_ok=True)
        return mlflow.get_run(run.info.run_id)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_its_hand_off_is_what_it_published(recreate, name):
    run = recreate(name)
    handoff = load_handoff(run.info.run_id)
    suggestions = json.loads((RUNS / name / "suggestions.json").read_text(encoding="utf-8"))
    found = suggestions.get("consensus") or suggestions["rules"]["robust"]
    assert (handoff.rule, handoff.range.max) == ("robust", suggestions["range"]["max"])
    assert handoff.range.min == suggestions["range"]["min"]
    assert handoff.confidence.low == found["interval"]["low"]
    assert handoff.confidence.high == found["interval"]["high"]
    assert run.data.tags["lrrt.verdict"] == "clear"
    assert handoff.confidence.clear
    assert digest(handoff.weights) == run.data.tags["lrrt.weights_sha256"]
    assert (len(handoff.curve), handoff.curve.stop) == (100, "completed")
    assert handoff.consensus_options.tests == (3 if name == "several" else 1)


def test_no_number_of_iterations_was_one_epoch(recreate):
    assert load_handoff(recreate("epoch").info.run_id).plan.ramp.iterations == "epoch"


def test_the_curve_is_the_one_that_the_rule_had_read(recreate):
    longer = load_handoff(recreate("longer").info.run_id)
    default = load_handoff(recreate("default").info.run_id)
    assert longer.plan.ramp == RangeTestOptions()
    assert longer.curve.loss.tolist() == default.curve.loss.tolist()
    # It was read on a processor whose logarithms may differ from those of this one in the last bit.
    # The rule suggested a tenth of the rise, and suggests a fifth of it today.
    read, published = longer.plan.read(longer.curve).final.range, longer.range
    then = 10 / 5 * published.min, 10 / 5 * published.max
    assert (read.min, read.max) == pytest.approx(then, rel=1e-12)


def test_an_altered_curve_of_the_reference_ramp_is_refused(recreate):
    run = recreate("longer")
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "curve.reference.csv"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(LRRTError, match=r"curve\.reference\.csv"):
        load_handoff(run.info.run_id)


@pytest.mark.parametrize("name", ["longer", "several"])
def test_it_is_trained_from_and_checked(store, recreate, name):
    run_id = recreate(name).info.run_id
    store.run("train", "--lrrt-run-id", run_id, "--epochs", 1)
    train = store.one("train")
    assert train.data.tags["lrrt.source_run_id"] == run_id
    # Of another machine the last digits may differ.
    first, expected = (train.data.metrics[x] for x in ("first_loss", "range_test_first_loss"))
    assert first == pytest.approx(expected, rel=1e-5)
    store.run("check")
    check = store.one("check").data
    assert check.tags["lrrt.fits"] == "true"
    # Today's probe has a baseline; that another multiple of the rise is suggested does not count.
    assert check.metrics["moved_decades"] == pytest.approx(0, abs=0.25)
    today, before = load_handoff(check.tags["lrrt.lrrt_run_id"]), load_handoff(run_id)
    assert today.plan.ramp == before.plan.ramp
    assert today.consensus_options == before.consensus_options


def test_they_are_compared(store, recreate):
    runs = [recreate(name) for name in ("default", "longer")]
    store.run("compare", *(run.info.run_id for run in runs))
    rows = store.csv(store.one("compare"), "ranges.csv")
    assert rows["lr_max"].tolist() == [run.data.metrics["suggested_lr_max"] for run in runs]
