"""How every option is declared: a dataclass field with its default, its help and its choices.

The field is the one place where a default is written. Commands, ``MLproject`` and the docs read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from lrrt_stage.errors import LRRTError, unknown_name

__all__ = ["check_choices", "hide_passwords", "option_text", "require", "setting"]


def setting(default: Any, help: str, *, choices: Iterable[str] | None = None) -> Any:
    """Declare a dataclass field that is also a command-line option.

    ``choices`` is any iterable of names, a registry for example; it is read when a value is
    checked, so that what is registered later counts too.
    """
    metadata = {"help": help, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require(condition: bool, message: str) -> None:
    """Raise :class:`LRRTError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise LRRTError(message)


def check_choices(options: Any) -> None:
    """Raise :class:`LRRTError` for the first field of ``options`` that is not among its choices.

    None is a choice where it is the default.
    """
    for each in fields(options):
        choices, value = each.metadata.get("choices"), getattr(options, each.name)
        if value is None and each.default is None:
            continue
        if choices is not None and value not in choices:
            raise unknown_name(each.name, str(value), choices)


def option_text(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return str(value)


SECRETS = (
    # In an address of the web, what stands before the @ of the host; a name is shown.
    (re.compile(r"(https?://[^:/@\s]*):[^/\s]*@"), r"\1:***@"),
    (re.compile(r"(https?://)[^:/@\s]+@"), r"\1***@"),
    # In that of a database a password may have any character.
    (re.compile(r"((?<!http)(?<!https)://[^:/@\s]*):\S*@"), r"\1:***@"),
    (re.compile(r"(?i)([?&][\w-]*(?:passw(?:or)?d|pwd|secret|token)=)[^&\s'\"]*"), r"\1***"),
)


def hide_passwords(text: str) -> str:
    """Return a text with ``***`` in place of the passwords and tokens in its addresses."""
    for secret, shown in SECRETS:
        text = secret.sub(shown, text)
    return text
