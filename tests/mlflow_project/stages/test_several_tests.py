"""`lrrt` and `main` with several tests."""

import sys

import pytest

from mlflow_project import load_handoff
from mlflow_project.stages.lrrt import lrrt_fingerprint
from mlflow_project.tracking import tags
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.decide.options import ConsensusOptions

QUICK = ("--iterations", 60, "--batch-size", 128, "--device", "cpu")
LRRT = ("lrrt", "--model", "mlp", *QUICK)
FACTORY = """
import pathlib
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent

def make():
    # A model is built under its task's seed.
    seed = torch.initial_seed()
    if (HERE / "interrupt").exists() and seed == 2:
        raise KeyboardInterrupt
    if (HERE / "fail").exists() and seed == 2:
        raise ValueError("an unlucky seed")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""
OWN = ("lrrt", "--model", "consensus_factory:make", *QUICK, "--workers", 1)
INITIALIZATIONS = (*OWN, "--tests", 3, "--vary", "initializations")


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "consensus_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("consensus_factory", None)


def children_of(store, run):
    """The run's children by name."""
    return {each.info.run_name: each for each in store.children(run, "test")}


def test_the_range_is_the_one_that_is_safe_for_all_tests(store):
    store.run(*LRRT, "--data-seed", 4)
    alone = store.one("lrrt")
    several = ("--tests", 3, "--agreement", 1, "--workers", 1)
    outcome = store.run(*LRRT, "--data-seed", 4, *several)
    run = store.runs("lrrt")[0]
    tests = children_of(store, run)
    assert {name: each.data.params["data_seed"] for name, each in tests.items()} == {
        "test order 1": "5",
        "test order 2": "6",
    }
    # The first test is the one without any others, on the weights that all ran on.
    assert store.history(run, "train_loss") == store.history(alone, "train_loss")
    weights = {each.data.tags["lrrt.weights_sha256"] for each in (run, alone, *tests.values())}
    assert len(weights) == 1

    own, agreed = store.json(alone, "suggestions.json"), store.json(run, "suggestions.json")
    assert "consensus" not in own
    assert (agreed["rules"], agreed["rule"]) == (own["rules"], own["rule"])
    ranges = agreed["consensus"]["ranges"]
    others = [tests[f"test order {index}"] for index in (1, 2)]
    theirs = [store.json(each, "suggestions.json")["range"] for each in others]
    assert ranges == [own["range"], *theirs]
    maxima = [each["max"] for each in ranges]
    assert agreed["range"]["max"] == min(maxima)
    assert agreed["range"]["min"] == max(each["min"] for each in ranges)
    assert agreed["consensus"]["interval"] == {"low": min(maxima), "high": max(maxima)}
    parts = (agreed["consensus"][name] for name in ("tests", "vary", "agreement"))
    assert tuple(parts) == (3, "data-order", 1.0)

    metrics = run.data.metrics
    assert metrics["suggested_lr_max"] == min(maxima)
    assert metrics["consensus_decades"] == agreed["consensus"]["decades"]
    assert "consensus_decades" not in alone.data.metrics
    for text in (run.data.tags["mlflow.note.content"], outcome.err):
        assert "all 3 tests" in text
    assert run.data.tags["lrrt.verdict"] == agreed["consensus"]["verdict"]
    assert store.artifacts(run) == store.artifacts(alone)

    handoff = load_handoff("latest")
    assert handoff.run_id == run.info.run_id
    assert handoff.range.max == min(maxima)
    assert handoff.confidence.low == min(maxima)


def test_the_number_of_tests_is_in_the_fingerprint(store):
    store.run(*LRRT, "--tests", 3, "--vary", "initializations", "--workers", 1)
    store.run(*LRRT)
    alone, three = store.runs("lrrt")
    assert "2 of 3 tests" in three.data.tags["mlflow.note.content"]
    assert set(children_of(store, three)) == {"test seed 1", "test seed 2"}
    assert three.data.tags[tags.FINGERPRINT] != alone.data.tags[tags.FINGERPRINT]


def test_the_number_of_workers_is_not_in_the_fingerprint():
    prepared = PreparedTask(Task(model="mlp"), Runtime(device="cpu"))

    def found(**options):
        return lrrt_fingerprint(prepared, RangeTestPlan(), ConsensusOptions(**options))

    assert found(tests=2, workers=2) == found(tests=2)
    assert found(tests=2, agreement=0.9) != found(tests=2) != found()


def test_an_interrupted_run_keeps_what_it_had_and_the_same_command_goes_on(store, factory):
    (factory / "interrupt").touch()
    outcome = store.run(*INITIALIZATIONS, code=130)
    (factory / "interrupt").unlink()
    assert "1 of 2" in outcome.err
    run = store.one("lrrt")
    assert run.info.status == "KILLED"
    assert len(store.csv(run, "curve.csv")) == len(store.history(run, "lr")[0])
    assert "initial_weights.safetensors" in store.artifacts(run)
    kept = store.one("test")
    assert kept.info.run_name == "test seed 1"

    outcome = store.run(*INITIALIZATIONS)
    assert "1 of 2" in outcome.err
    run = store.runs("lrrt")[0]
    assert run.info.status == "FINISHED"
    assert children_of(store, run)["test seed 1"].info.run_id == kept.info.run_id
    assert set(children_of(store, run)) == {"test seed 1", "test seed 2"}


def test_a_test_that_fails_does_not_agree(store, factory):
    (factory / "fail").touch()
    store.run(*INITIALIZATIONS, "--agreement", 1, code=2).names("2 of 3", "agreement=1", "seed 2")
    run = store.one("lrrt")
    assert run.info.status == "FAILED"
    suggestions = store.json(run, "suggestions.json")
    assert suggestions["range"] is None
    assert "an unlucky seed" in suggestions["consensus"]["no_suggestion"]
    assert "suggested_lr_max" not in run.data.metrics

    outcome = store.run(*INITIALIZATIONS)
    assert "seed 2" in outcome.err
    consensus = store.json(store.runs("lrrt")[0], "suggestions.json")["consensus"]
    assert consensus["without_suggestion"] == 1
    assert consensus["ranges"][2] is None


def test_the_chain_trains_inside_the_consensus_and_reuses_it(store):
    chain = (
        "main", "--model", "mlp", *QUICK, "--tests", 2, "--workers", 1,
        "--reuse", "true", "--epochs", 1,
    )  # fmt: skip
    store.run(*chain)
    lrrt, train = store.one("lrrt"), store.one("train")
    assert len(children_of(store, lrrt)) == 1
    agreed = load_handoff(lrrt.info.run_id).range
    assert train.data.metrics["trained_lr_max"] == agreed.max
    ranges = store.json(lrrt, "suggestions.json")["consensus"]["ranges"]
    assert lrrt.data.metrics["suggested_lr_max"] == min(each["max"] for each in ranges)
    assert store.one("main").data.params["tests"] == "2"

    store.run(*chain, "--workers", 2)
    assert len(store.runs("lrrt")) == 1
    store.run(*chain, "--tests", 3)
    assert len(store.runs("lrrt")) == 2


@pytest.mark.parametrize("command", ["lrrt", "main"])
@pytest.mark.parametrize(
    "given", [("tests", 0), ("agreement", 0.0), ("agreement", 1.01), ("vary", "weights")]
)
def test_options_that_cannot_be_used_are_one_line(store, command, given):
    name, value = given
    store.run(command, f"--{name}", value, code=2).names(name, value)
    assert store.runs() == []


def test_weights_of_a_run_cannot_be_made_again(store):
    store.run(*LRRT, "--tests", 2, "--init", "run:abc", code=2).names("run:abc", "file:")
