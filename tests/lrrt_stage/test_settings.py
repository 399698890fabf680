from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import LRRTError
from lrrt_stage.settings import Options, hide_passwords, setting
from tests.strategies import JSON, result_or_refusal

# Also what no JSON has: numbers of an array library, lists that cannot be changed, bytes.
VALUES = (
    JSON
    | st.dictionaries(st.text(), JSON, max_size=3)
    | st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)
    | st.sampled_from([np.int64(3), np.float32(0.1), np.bool_(True), (1, 2), b"a", 10**5000, "one"])
)


@dataclass(frozen=True)
class Example(Options):
    count: int = setting(3, "", minimum=1)
    share: float = setting(0.5, "", above=0, maximum=1)
    decay: float = setting(0.1, "", minimum=0, below=1)
    limit: float | None = setting(None, "", above=0)
    rest: int | None = setting(4, "")
    name: str = setting("a", "")
    kind: str | None = setting(None, "", choices=("one", "three"))
    flag: bool = setting(True, "")
    arguments: dict[str, Any] = setting({}, "")


def nested(levels):
    """A list in a list, so many in all."""
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "values",
    [
        {"rest": -(2**63), "arguments": {"a": nested(49), "tab": "\t", "größe": [{"1 2": None}]}},
        {"count": 1, "share": 1.0, "decay": 0, "limit": 1e-9},
        {"share": 1, "count": np.int64(2), "limit": np.float32(2)},
        {"limit": None, "rest": None, "kind": None},
        {"kind": "three", "flag": False, "arguments": {"a": 1}},
    ],
)
def test_allowed_values_are_kept(values):
    assert {name: getattr(Example(**values), name) for name in values} == values


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 0, ["at least 1", "default is 3"]),
        ("share", 0.0, ["above 0", "at most 1"]),
        ("share", 1.01, ["at most 1"]),
        ("decay", 1.0, ["at least 0", "below 1"]),
        ("decay", -1e-9, ["at least 0"]),
        ("limit", 0.0, ["above 0", "default is none"]),
        ("share", float("nan"), ["finite"]),
        ("limit", float("inf"), ["finite"]),
        ("count", "3", ["whole number", "default is 3"]),
        ("count", 2.0, ["whole number"]),
        ("count", True, ["whole number"]),
        ("count", None, ["whole number"]),
        ("rest", "x", ["whole number"]),
        ("share", "0.5", ["number"]),
        ("name", 3, ["text"]),
        ("flag", "false", ["true or false"]),
        ("flag", 1, ["true or false"]),
        ("arguments", [1], ["JSON object", "default is {}"]),
        ("arguments", {"a": float("nan")}, ["finite numbers"]),
        ("arguments", {"a": [float("inf")]}, ["finite numbers"]),
        ("arguments", {"a": 2**63}, ["64 bits"]),
        ("arguments", {"a": (1, 2)}, ["lists and objects"]),
        ("arguments", {"a": np.int64(1)}, ["JSON object"]),
        ("arguments", {"a b": 1}, ["names of arguments"]),
        ("arguments", {1: 1}, ["names of arguments"]),
        ("arguments", {"a" * 201: 1}, ["names of arguments"]),
        ("arguments", {"a": {2: 1}}, ["JSON object"]),
        ("arguments", {"a": "\0"}, ["JSON object"]),
        ("arguments", {"a": "\udc80"}, ["JSON object"]),
        ("arguments", {"a": nested(50)}, ["50 inside each other"]),
        ("rest", 2**63, ["64 bits"]),
        ("share", 10**400, ["finite"]),
        ("name", "a\nb", ["control characters"]),
        ("name", "\x1b[31m", ["control characters"]),
        ("name", "a\udcffb", ["control characters"]),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_one_line(name, value, words):
    with pytest.raises(LRRTError) as caught:
        Example(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r} ")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_an_unknown_choice_brings_the_nearest():
    with pytest.raises(LRRTError, match="unknown kind 'thre'.*'three'"):
        Example(kind="thre")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:p@s/s@host/db", "postgresql+psycopg://me:***@host/db"),
        ("no postgresql://me:pw@host, sorry", "no postgresql://me:***@host, sorry"),
        ("mysql://host/db?user=me&password=pw&x=1", "mysql://host/db?user=me&password=***&x=1"),
        (
            "x://host/db?sslpassword=pw&access_token=t",
            "x://host/db?sslpassword=***&access_token=***",
        ),
        ("https://me:pw@host:5000/a", "https://me:***@host:5000/a"),
        ("https://token@host/a", "https://***@host/a"),
        # These contain no secret.
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("http://host:5000/#/models/digits@best", "http://host:5000/#/models/digits@best"),
        ("sqlite:///optuna.db", "sqlite:///optuna.db"),
    ],
)
def test_passwords_and_tokens_of_addresses_are_hidden(text, shown):
    assert hide_passwords(text) == shown


def test_a_number_of_too_many_digits_to_write_is_refused_as_well():
    with pytest.raises(LRRTError, match="count=int must be a whole number of 64 bits"):
        Example(count=10**5000)
    with pytest.raises(LRRTError, match="arguments=dict must be a JSON object"):
        Example(arguments={"a": 10**5000})


@given(st.sampled_from([*asdict(Example())]), VALUES)
def test_options_go_to_json_and_back_or_are_refused(name, value):
    made = result_or_refusal(Example, **{name: value})
    if isinstance(made, Example):
        assert Example(**json.loads(json.dumps(asdict(made), allow_nan=False))) == made
