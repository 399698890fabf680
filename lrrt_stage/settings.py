"""How options are declared and checked: a dataclass field with its default, help and bounds.

The commands and the documentation read defaults from the field; a test compares ``MLproject``.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import field, fields
from functools import lru_cache
from math import isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lrrt_stage.errors import LRRTError, describe, unknown_name
from lrrt_stage.secrets import hide_passwords, masked, remember_secrets

__all__ = [
    "TYPES",
    "Options",
    "hide_passwords",
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
TYPES: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "text"),
    dict: (dict, 'a JSON object like {"width": 64}'),
}
"""Type of a field -> type that its values must have, and that in words."""


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
            value, declared = getattr(self, option.name), option.metadata
            if not declared:
                continue
            kind, words = types[option.name]
            if any(value is word or value == word for word in words):
                continue
            bounds, choices = declared["bounds"].items(), declared["choices"]
            if not _is_a(value, kind) or not all(BOUNDS[name][0](value, x) for name, x in bounds):
                or_words = "".join(f" or {option_text(word)}" for word in words)
                allowed = [TYPES[kind][1], *(f"{BOUNDS[name][1]} {x}" for name, x in bounds)]
                raise LRRTError(
                    f"{option.name}={value!r} must be {', '.join(allowed)}{or_words}: "
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


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    fits = isinstance(value, TYPES[kind][0])
    return fits and (kind is not float or isfinite(value))


def option_text(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return str(value)
