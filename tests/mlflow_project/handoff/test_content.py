"""Files of a run with any content: one line that names the run, and nothing of this machine."""

import copy
import hashlib
import json
import math
import os
import re
import tempfile
from pathlib import Path

import mlflow
import pytest
import torch

from lrrt_stage import LRRTError
from lrrt_stage import digest as digest_of
from lrrt_stage.errors import excerpt
from lrrt_stage.state import weights
from mlflow_project import load_handoff
from mlflow_project.handoff.artifacts import load_json, run_file
from mlflow_project.handoff.handoff import source_of
from mlflow_project.stages.job_runs import _load_history
from pipeline import Task

TAGS = {
    "task.json": "lrrt.task_sha256",
    "suggestions.json": "lrrt.suggestions_sha256",
    "curve.csv": "lrrt.curve_sha256",
    "refined_range.json": "lrrt.refined_sha256",
}
DELETE = object()
TEXTS = ("x", "\x1b[31mred\n", "x" * 5000, "\ud800", "a\0b")
WRONG = (None, True, -1, 1.5, *TEXTS, [], {}, [1], {"a": 1}, DELETE, math.nan, math.inf, 10**30)
# Of these, each place in a file gets every third one, the next place the next ones, and so on.
EVERY = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 3


def write(store, run, name, content):
    path = store.file(run, name)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    mlflow.MlflowClient().set_tag(run.info.run_id, TAGS[name], digest)


def require_one_line(error, run):
    text = str(error)
    assert run.info.run_id in text
    assert text.isprintable()
    assert len(text) < 700, text
    for folder in (tempfile.gettempdir(), str(Path.home()), "site-packages"):
        assert folder not in re.sub(r"sqlite:\S*", "", text)


def refused(run):
    with pytest.raises(LRRTError) as error:
        load_handoff(run.info.run_id)
    require_one_line(error.value, run)
    return str(error.value)


def leaves(content, path=()):
    """The places in a JSON object, with those of its objects and lists."""
    for key, item in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from leaves(item, (*path, key))


def changed(content, path, value):
    content = copy.deepcopy(content)
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is DELETE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(content)


DEEP = "[" * 5000 + "]" * 5000
DEEP_OBJECT = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("name", ["task.json", "suggestions.json"])
@pytest.mark.parametrize(
    "content",
    [
        *("", " ", "null", "1", '"x"', "[]", "[{}]", "{}", "{", "\x00", "\ud800", "NaN"),
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        DEEP,
        f'{{"contract_version": 2, "task": {DEEP}}}',
        f'{{"contract_version": 2, "task": {DEEP_OBJECT}}}',
        '{"contract_version": 2, "contract_version": 2}',
        '{"contract_version": true}',
        '{"contract_version": "2"}',
        '{"contract_version": 2.0}',
        '{"contract_version": 0}',
        f'{{"contract_version": {"9" * 5000}}}',
        '{"contract_version": 1e999}',
        '{"contract_version": {"\\u001b[31m": 1}}',
    ],
)
def test_a_file_that_is_no_object_of_json_is_one_line(store, lrrt, name, content):
    write(store, lrrt, name, content)
    assert name in refused(lrrt)


@pytest.mark.soak
@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("name", ["task.json", "suggestions.json"])
def test_no_value_of_any_type_anywhere_is_more_than_one_line(store, lrrt, name):
    content = store.json(lrrt, name)
    if name == "task.json":
        # Kept as a record; nothing reads it.
        content.pop("environment")
    accepted = set()
    for index, path in enumerate(leaves(content)):
        for value in WRONG[index % EVERY :: EVERY]:
            write(store, lrrt, name, changed(content, path, value))
            try:
                handoff = load_handoff(lrrt.info.run_id)
            except LRRTError as error:
                require_one_line(error, lrrt)
            else:
                accepted.add((path, repr(value)[:20]))
                # What is accepted can be used.
                assert repr(handoff)
                assert handoff.range.decades > 0
                assert handoff.consensus_options.tests == 1
                assert handoff.reading.verdict
                assert handoff.confidence.decades >= 0
    never = {"contract_version", "data_sha256", "rule", "rules", "curve", "smoothing"}
    wrong = {path for path, value in accepted if path[0] in never and value in ("[]", "True")}
    assert wrong <= {("curve", "iterations"), ("rules", "steepest")}, wrong


@pytest.mark.soak
def test_no_value_in_a_consensus_is_more_than_one_line(store):
    store.run("lrrt", *store.SMALL, "--tests", 2, "--workers", 1)
    run = store.one("lrrt")
    whole = store.json(run, "suggestions.json")
    places = leaves({name: part for name, part in whole.items() if name != "rules"})
    for index, path in enumerate(places):
        for value in WRONG[index % EVERY :: EVERY]:
            write(store, run, "suggestions.json", changed(whole, path, value))
            try:
                handoff = load_handoff(run.info.run_id)
            except LRRTError as error:
                require_one_line(error, run)
            else:
                assert repr(handoff)
                assert handoff.range.decades > 0
                assert handoff.consensus_options
                assert handoff.confidence.decades >= 0


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize(
    "arguments",
    [*({text: 1} for text in (*TEXTS, "")), *({"width": text} for text in TEXTS)],
)
def test_arguments_of_any_form_are_repeated_in_part(store, lrrt, arguments):
    content = store.json(lrrt, "task.json")
    content["task"]["model_args"] = arguments
    write(store, lrrt, "task.json", json.dumps(content))
    for command in (("train",), ("refine",), ("check", "--baseline", lrrt.info.run_id)):
        outcome = store.run(*command, code=2)
        assert len(outcome.error) < 900
        assert outcome.error.isprintable()
        assert "x" * 200 not in outcome.error
    with pytest.raises(LRRTError) as error:
        load_handoff().check(Task(seed=1, data_seed=1, model="cnn", optimizer="adam", l2=1.0))
    assert len(str(error.value)) < 900


@pytest.mark.starts_with("lrrt")
def test_names_of_weights_are_repeated_in_part(store, lrrt):
    names = {"\x1b[31m\n" + "x" * 1000: torch.zeros(2), "y" * 1000: torch.zeros(3)}
    weights.save(names, store.file(lrrt, "initial_weights.safetensors"))
    mlflow.MlflowClient().set_tag(lrrt.info.run_id, "lrrt.weights_sha256", digest_of(names))
    outcome = store.run("train", code=2)
    outcome.names("weights do not fit")
    assert len(outcome.error) < 700
    assert outcome.error.isprintable()


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"\x00" * 100,
        "iteration,lr,loss\n0,nan,1\n1,0.1,1\n",
        "iteration,lr,loss\n0,0,1\n1,0.1,1\n",
        "iteration,lr,loss\n0,-1,1\n1,0.1,1\n",
        "iteration,lr,loss\n0,inf,1\n1,0.1,1\n",
        "iteration,lr,loss\n0,1e999,1\n",
        "iteration,lr,loss\n0,0.1\n0.1,1,2,3,4,5\n",
        "lr,loss\n\x1b[31m,1\n",
        "x" * 5000,
        '"' * 1001,
    ],
)
def test_a_curve_that_is_none_is_one_line(store, lrrt, content):
    write(store, lrrt, "curve.csv", content)
    assert "curve.csv" in refused(lrrt)


@pytest.mark.starts_with("refine")
@pytest.mark.parametrize(
    "lr_range",
    [
        *(None, [], "x", 1, {}, {"min": 1}, {"min": 0.1, "max": "1"}, {"min": True, "max": 2}),
        {"min": 0.1, "max": 1, "more": 1},
        {"min": 0.1, "max": 0.1},
        {"min": None, "max": None},
        {"min": -1, "max": 1},
        {"min": 0.1, "max": 10**30},
    ],
)
def test_a_refined_range_that_is_none_is_one_line(store, lr_range):
    run = store.one("refine")
    content = store.json(run, "refined_range.json") | {"range": lr_range}
    write(store, run, "refined_range.json", json.dumps(content))
    outcome = store.run("train", "--refine-run-id", "latest", code=2)
    outcome.names("refined_range.json", run.info.run_id)


@pytest.mark.starts_with("main")
@pytest.mark.parametrize("value", [None, "", "\x1b[31m", "../..", "x" * 500, "a' or '1'='1"])
def test_a_tag_that_names_no_run_is_one_line(store, value):
    client = mlflow.MlflowClient()
    tags = {"main": "lrrt.lrrt_run_id", "train": "lrrt.source_run_id"}
    for stage, tag in tags.items():
        run = store.one(stage)
        client.delete_tag(run.info.run_id, tag)
        if value is not None:
            client.set_tag(run.info.run_id, tag, value)
        refused(run)
    run = store.one("main")
    client.delete_tag(run.info.run_id, "lrrt.train_run_id")
    with pytest.raises(LRRTError) as error:
        source_of(run.info.run_id)
    require_one_line(error.value, run)


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("tag", ["lrrt.stage", "lrrt.error", "lrrt.weights_sha256"])
def test_a_tag_with_any_text_is_repeated_in_part(store, lrrt, tag):
    client = mlflow.MlflowClient()
    client.set_tag(lrrt.info.run_id, tag, "\x1b[31m\n" + "x" * 4000)
    if tag == "lrrt.error":
        client.set_terminated(lrrt.info.run_id, "FAILED")
    refused(lrrt)


@pytest.mark.starts_with("lrrt")
def test_an_artifact_that_is_a_folder_or_leads_elsewhere_is_none(store, lrrt, tmp_path):
    path = store.file(lrrt, "task.json")
    path.unlink()
    path.mkdir()
    (path / "inner").write_text("{}")
    assert "no artifact task.json" in refused(lrrt)
    folder = tmp_path / "to"
    folder.mkdir()
    with pytest.raises(LRRTError, match="no artifact"):
        run_file(lrrt, "../to", folder)


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("led_to", ["../outside", "/etc/hostname"])
def test_a_download_outside_of_the_folder_is_refused(store, lrrt, tmp_path, monkeypatch, led_to):
    outside = tmp_path / "outside"
    outside.write_text("{}")
    monkeypatch.setattr(
        mlflow.artifacts, "download_artifacts", lambda dst_path, **_: f"{dst_path}/{led_to}"
    )
    assert "no artifact task.json" in refused(lrrt)


def test_numbers_and_keys_of_json_are_read_strictly(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": Infinity, "b": NaN, "c": 1e3}')
    assert load_json(path, finite=False)["a"] == math.inf
    for text in (
        path.read_text(),
        '{"a": {"b": 1, "b": 2}}',
        '{"a": 1e400}',
        '{"a": 1' + "0" * 20 + "}",
    ):
        path.write_text(text)
        with pytest.raises(LRRTError):
            load_json(path)


@pytest.mark.parametrize(
    "result",
    [
        *(None, [], {}, {"lr": 1}),
        {"lr": [1], "train_loss": ["x"], "epochs": []},
        {"lr": [1], "train_loss": [], "epochs": []},
        {"lr": [], "train_loss": [], "epochs": [1]},
        {"lr": [], "train_loss": [], "epochs": [{"iteration": "1", "val_loss": 1}]},
        {"lr": [], "train_loss": [], "epochs": [{"iteration": 1, "val_loss": [1]}]},
    ],
)
def test_a_job_whose_result_is_none_is_refused(tmp_path, result):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"result": result}))
    with pytest.raises((LRRTError, KeyError, TypeError, AttributeError)):
        _load_history(path)


def test_an_excerpt_is_short_and_printable():
    assert (
        excerpt("a\nb\x1b[31m\u202ec")
        == "a b\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}c"
    )
    assert len(excerpt("x" * 1000)) == 200
    assert str(LRRTError("\x1b[2Jgone")) == "\N{REPLACEMENT CHARACTER}[2Jgone"
