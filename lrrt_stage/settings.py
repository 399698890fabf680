"""How options are declared and checked: a dataclass field with its default, help and bounds.

The commands and the documentation read defaults from the field; a test compares ``MLproject``.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable
from dataclasses import Field, field, fields
from functools import lru_cache
from math import isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lrrt_stage.errors import LRRTError, describe, quoted, unknown_name
from lrrt_stage.secrets import hide_passwords, masked, remember_secrets

__all__ = [
    "TYPES",
    "Options",
    "check_setting",
    "hide_passwords",
    "is_a",
    "masked",
    "option_text",
    "option_type",
    "require",
    "require_kind",
    "setting",
]

BOUNDS = {
    "minimum": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "maximum": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}
"""Name of a bound -> comparison that a value must pass, and that in words."""
TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number of 64 bits"),
    float: (Real, "a finite number"),
    str: (str, "text without control characters"),
    dict: (
        dict,
        'a JSON object like {"width": 64}: names of arguments, each once, to finite numbers of 64 '
        "bits, texts, and lists and objects of them, not more than 50 inside each other",
    ),
}
"""Type of a field -> type that its values must have, and what else :func:`is_a` asks, in words."""
UNSTORABLE = "\0\ud800-\udfff"
"""No database takes a zero, or half of a character: a byte that is no UTF-8, as Python reads it."""
CONTROL = "\1-\x1f\x7f-\x9f"
LONGEST_NAME, DEEPEST = 200, 50
"""Of keyword arguments: the length of a name, of which a store makes that of a parameter, and how
many lists and objects may be inside each other."""


def setting(
    default: Any, help: str, *, choices: Iterable[str] | None = None, **bounds: float
) -> Any:
    """Declare a dataclass field that is also a command-line option.

    ``choices`` are read when a value is checked, so that names that are registered later count as
    well. Of the ``bounds`` of a number, ``minimum`` and ``maximum`` are allowed values, ``above``
    and ``below`` are not.
    """
    metadata = {"default": default, "help": help, "choices": choices, "bounds": bounds}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: bool, message: str) -> None:
    """Raise :class:`LRRTError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise LRRTError(message)


def require_kind(fits: bool, name: str, value: Any, remedy: str) -> None:
    """Raise :class:`LRRTError`, which says what ``value`` is, unless it ``fits``."""
    require(fits, f"{name} is {describe(value)}: {remedy}")


class Options:
    """Base of a dataclass of options, which checks every :func:`setting` of an instance.

    The error for the first value that is not allowed has the option's name, the value, what is
    allowed, and the default.
    """

    def __post_init__(self) -> None:
        types = _types(type(self))  # type: ignore[arg-type]
        # First, so that no error repeats them.
        remember_secrets({name: value for name, value in vars(self).items() if name in types})
        for option in fields(self):  # type: ignore[arg-type]
            if option.name not in types:
                continue
            value = getattr(self, option.name)
            _check(option, *types[option.name], value)
            # That of an array library, which JSON does not know.
            if isinstance(value, Real) and not isinstance(value, (int, float)):
                number = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, option.name, number)


def check_setting(option: Field[Any], hint: Any, value: Any) -> None:
    """Raise LRRTError unless a dataclass with this field and type hint would take the value."""
    remember_secrets({option.name: value})  # first, so that the error does not repeat them
    _check(option, *option_type(hint), value)


def _check(option: Field[Any], kind: type, words: tuple[Any, ...], value: Any) -> None:
    if any(value is word or value == word for word in words):
        return
    declared = option.metadata
    bounds, choices = declared["bounds"].items(), declared["choices"]
    if not is_a(value, kind) or not all(BOUNDS[name][0](value, x) for name, x in bounds):
        or_words = "".join(f" or {option_text(word)}" for word in words)
        allowed = [TYPES[kind][1], *(f"{BOUNDS[name][1]} {x}" for name, x in bounds)]
        raise LRRTError(
            f"{option.name}={quoted(value)} must be {', '.join(allowed)}{or_words}: "
            f"the default is {option_text(declared['default'])}"
        )
    if choices is not None and value not in choices:
        raise unknown_name(option.name, value, choices)


@lru_cache
def _types(options: type) -> dict[str, tuple[type, tuple[Any, ...]]]:
    hints = get_type_hints(options)
    declared = [option.name for option in fields(options) if option.metadata]
    return {name: option_type(hints[name]) for name in declared}


def option_type(hint: Any) -> tuple[type, tuple[Any, ...]]:
    """Return the type of a field's values, given its hint, and the words allowed in their place.

    ``int | None`` is an int or the word None, ``int | Literal["epoch"]`` an int or the word epoch.
    """
    types = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    words: list[Any] = []
    kinds = []
    for kind in types:
        if get_origin(kind) is Literal:
            words += get_args(kind)
        elif kind is type(None):
            words.append(None)
        else:
            kinds.append(get_origin(kind) or kind)
    (only,) = kinds
    return only, tuple(words)


def is_a(value: Any, kind: type) -> bool:
    """Return whether a value is of a kind in :data:`TYPES`, and can be stored."""
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, TYPES[kind][0]):
        return False
    if kind is int:
        return -(2**63) <= value < 2**63
    if kind is float:
        try:
            return isfinite(value)
        except OverflowError:  # of an int that no float can hold
            return False
    if kind is str:
        return re.search(f"[{UNSTORABLE}{CONTROL}]", value) is None
    named = all(isinstance(k, str) and k.isidentifier() and len(k) <= LONGEST_NAME for k in value)
    return named and _is_json(value, DEEPEST)


def _is_json(value: Any, levels: int) -> bool:
    """Return whether JSON gives a value back as it is, and its parts are at most so deep in it."""
    if isinstance(value, str):  # with line ends and tabs, unlike the text of an option
        return re.search(f"[{UNSTORABLE}]", value) is None
    if isinstance(value, dict):
        named = all(isinstance(name, str) and _is_json(name, levels) for name in value)
        return named and _is_json([*value.values()], levels)
    if isinstance(value, list):
        return levels > 0 and all(_is_json(part, levels - 1) for part in value)
    kinds = (bool, int, float)
    return value is None or any(isinstance(value, kind) and is_a(value, kind) for kind in kinds)


def option_text(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return str(value)
