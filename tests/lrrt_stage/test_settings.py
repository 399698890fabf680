from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lrrt_stage import LRRTError
from lrrt_stage.settings import Options, hide_passwords, setting


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


@pytest.mark.parametrize(
    "values",
    [
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
