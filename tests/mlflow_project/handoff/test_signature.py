"""Signed runs: what was changed later, or published without the key, is refused."""

import json
import sqlite3
from contextlib import closing

import mlflow
import pytest
import torch
from torch import nn, optim

from lrrt_stage import LRRTError
from mlflow_project import load_handoff, track_range_test
from mlflow_project.handoff.handoff import source_of

KEY = "a key of the tests, 42"
SMALL = ("--iterations", 60)


@pytest.fixture
def signed(store, monkeypatch):
    """A signed range test."""
    monkeypatch.setenv("LRRT_SIGNING_KEY", KEY)
    store.run("lrrt", *store.SMALL, *SMALL)
    return store.one("lrrt")


def set_tag(run, tag, value):
    mlflow.MlflowClient().set_tag(run.info.run_id, tag, value)


def refused(words, run_id="latest"):
    with pytest.raises(LRRTError, match=words) as error:
        load_handoff(run_id, require_signature=True)
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)


def test_a_signed_run_is_loaded_and_used(store, signed):
    assert len(signed.data.tags["lrrt.signature"]) == 64
    assert load_handoff(require_signature=True).run_id == signed.info.run_id
    required = ("--require-signature", "true")
    store.run("refine", "--trials", 1, *required)
    store.run("train", "--epochs", 1, "--refine-run-id", "latest", "--register", "m", *required)
    store.run("check", "--baseline", "models:/m/1", "--workers", 1, *required)
    check, train = store.one("check").info.run_id, store.one("train").info.run_id
    assert load_handoff(check, require_signature=True)
    store.run("compare", check, train, *required)


def test_main_and_the_tests_of_studies_are_signed(store, monkeypatch):
    monkeypatch.setenv("LRRT_SIGNING_KEY", KEY)
    monkeypatch.setenv("LRRT_REQUIRE_SIGNATURE", "true")
    short = (*store.SMALL, *SMALL, "--workers", 1)
    chain = ("main", *short, "--refine", "true", "--trials", 1, "--epochs", 1, "--tests", 2)
    store.run(*chain)
    assert load_handoff(store.one("main").info.run_id)
    source_of(store.one("main").info.run_id)
    again = store.run(*chain, "--reuse", "true")
    assert again.err.count("reusing") == 3
    store.run("study", *short, "--tests", 2)
    for test in store.runs("test"):
        assert load_handoff(test.info.run_id)


def test_objects_in_hand_and_trainings_of_ones_own_are_signed(store, monkeypatch):
    monkeypatch.setenv("LRRT_SIGNING_KEY", KEY)
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = torch.randn(64, 4)
    batches = [(x, x[:, :2])] * 4
    sgd = optim.SGD(model.parameters(), lr=0.1)
    handoff = track_range_test(model, sgd, nn.MSELoss(), batches, probe=batches[0])
    assert load_handoff(handoff.run_id, require_signature=True)
    with mlflow.start_run() as run:
        handoff.track_training()
    assert load_handoff(run.info.run_id, require_signature=True)
    set_tag(run, "lrrt.source_run_id", store.runs("lrrt")[0].info.run_id + "0")
    refused("signature", run.info.run_id)


@pytest.mark.parametrize("by", ["option", "argument", "variable"])
def test_without_a_signature_a_run_is_refused_where_one_is_required(store, monkeypatch, by):
    store.run("lrrt", *store.SMALL, *SMALL)
    monkeypatch.setenv("LRRT_SIGNING_KEY", KEY)
    run_id = store.one("lrrt").info.run_id
    assert load_handoff()
    if by == "option":
        for command in (("train",), ("refine",), ("check", "--baseline", run_id)):
            outcome = store.run(*command, "--require-signature", "true", code=2)
            outcome.names(run_id, "no signature", "LRRT_SIGNING_KEY")
        compare = ("compare", run_id, run_id, "--require-signature", "true")
        store.run(*compare, code=2).names("no signature")
    elif by == "argument":
        refused("no signature")
    else:
        monkeypatch.setenv("LRRT_REQUIRE_SIGNATURE", "true")
        store.run("train", code=2).names("no signature")
        store.run("lrrt", *store.SMALL, *SMALL, "--init", f"run:{run_id}", code=2).names(
            "no signature"
        )
        monkeypatch.setenv("LRRT_REQUIRE_SIGNATURE", "perhaps")
        store.run("train", code=2).names("LRRT_REQUIRE_SIGNATURE", "true or false")


def test_what_was_changed_is_refused(store, signed):
    client = mlflow.MlflowClient()
    run_id, tags = signed.info.run_id, signed.data.tags
    digests = [tag for tag in tags if tag.endswith("_sha256")]
    assert len(digests) == 4
    for tag in (*digests, "lrrt.fingerprint"):
        set_tag(signed, tag, "0" * 64)
        refused("signature .* wrong")
        client.delete_tag(run_id, tag)
        refused("signature .* wrong")
        set_tag(signed, tag, tags[tag])
        assert load_handoff(require_signature=True)
    for tag in ("lrrt.final_weights_sha256", "lrrt.x_sha256", "lrrt.source_run_id"):
        set_tag(signed, tag, "0" * 64)
        refused("signature .* wrong")
        client.delete_tag(run_id, tag)
    for signature in ("", "0" * 64, tags["lrrt.signature"].upper(), "é"):
        set_tag(signed, "lrrt.signature", signature)
        refused("signature")
    client.delete_tag(run_id, "lrrt.signature")
    refused("no signature")


def test_a_signature_of_another_run_or_stage_is_refused(store, signed):
    store.run("lrrt", *store.SMALL, *SMALL, "--seed", 1)
    newer = store.runs("lrrt")[0]
    for tag, value in signed.data.tags.items():
        if tag.startswith("lrrt."):
            set_tag(newer, tag, value)
    refused("signature .* wrong", newer.info.run_id)
    set_tag(signed, "lrrt.stage", "test")
    refused("signature .* wrong", signed.info.run_id)


def test_a_training_cannot_be_led_to_another_range_test_or_rate(store, signed):
    store.run("train", "--epochs", 1)
    store.run("lrrt", *store.SMALL, *SMALL, "--seed", 1)
    train, other = store.one("train"), store.runs("lrrt")[0]
    set_tag(train, "lrrt.source_run_id", other.info.run_id)
    refused("signature .* wrong", train.info.run_id)
    set_tag(train, "lrrt.source_run_id", signed.info.run_id)
    assert load_handoff(train.info.run_id, require_signature=True)
    mlflow.MlflowClient().log_metric(train.info.run_id, "trained_lr_max", 1e-9)
    store.run(
        "check", "--baseline", train.info.run_id, "--require-signature", "true", code=2
    ).names("signature", "wrong")


def test_a_refinement_is_checked_as_well(store, signed, monkeypatch):
    store.run("refine", "--trials", 1)
    set_tag(store.one("refine"), "lrrt.refined_sha256", "0" * 64)
    options = ("--refine-run-id", "latest", "--require-signature", "true")
    store.run("train", *options, code=2).names(store.one("refine").info.run_id, "signature")


def test_a_key_is_needed_and_must_be_the_right_one(store, signed, monkeypatch):
    monkeypatch.setenv("LRRT_SIGNING_KEY", f"{KEY}!")
    refused("signature .* wrong")
    monkeypatch.delenv("LRRT_SIGNING_KEY")
    refused("LRRT_SIGNING_KEY")
    assert load_handoff()


@pytest.mark.parametrize("key", ["", "short", " " * 40, "x" * 15])
def test_a_short_key_is_refused_before_any_work(store, signed, monkeypatch, key):
    monkeypatch.setenv("LRRT_SIGNING_KEY", key)
    for command in (("lrrt", *store.SMALL), ("train",), ("refine",)):
        outcome = store.run(*command, code=2)
        outcome.names("LRRT_SIGNING_KEY", "16 characters")
        assert not key.strip() or key not in outcome.error
    refused("16 characters")


def test_without_a_key_nothing_is_signed(store):
    store.run("lrrt", *store.SMALL, *SMALL)
    assert "lrrt.signature" not in store.one("lrrt").data.tags


def test_the_key_is_nowhere(store, signed, tmp_path):
    store.run("train", "--epochs", 1)
    store.run("check", "--workers", 1)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert KEY not in "\n".join(database.iterdump())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in json.dumps(signed.data.to_dictionary())
