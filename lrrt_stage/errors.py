"""Errors for the user: one line that says what was wrong, with the value, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum
from typing import Any

from lrrt_stage.secrets import hide_passwords

__all__ = [
    "LRRTError",
    "NoSuggestion",
    "Verdict",
    "describe",
    "excerpt",
    "first_line",
    "loader_error",
    "quoted",
    "text_of",
    "unknown_name",
]


HIDDEN_CHARACTER = "\N{REPLACEMENT CHARACTER}"
LONGEST = 200
"""Characters that an error repeats of a value which somebody else chose."""


class LRRTError(ValueError):
    """Input that cannot be used. The message is one line: what was wrong and what to do.

    Secrets in it are hidden, and so are characters that a terminal would obey.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_without_controls(hide_passwords(str(message))))


class Verdict(str, Enum):
    """How clearly a suggestion could be read from the curve.

    It says nothing about the training that follows.
    """

    CLEAR = "clear reading"
    NOISY = "unclear reading: noisy curve"
    APART = "unclear reading: the tests differ"
    RAMP = "unclear reading: unusual ramp"
    NO_DESCENT = "no descent: check data or loss"
    STILL_FALLING = "still falling at lr_end: raise it"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        """Return the verdict by the words that runs had before."""
        text = str(value).replace("uncertain: ", "unclear reading: ", 1)
        known = {each.value: each for each in cls}
        return cls.CLEAR if value == "clear" else known.get(text)


class NoSuggestion(LRRTError):
    """A rule has no answer for a curve. The message says why and what to change."""

    def __init__(self, message: str, verdict: Verdict = Verdict.NO_DESCENT) -> None:
        super().__init__(message)
        self.verdict = verdict


UNSAFE = "Weights only load failed"
"""How torch begins a text that goes on to advise ``weights_only=False``: a pickle can run code."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name where it has none.

    Of a file that torch does not load, the line does not say how to load it all the same.
    """
    line = (text_of(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(f"({UNSAFE}).*", r"\1: the file holds more than weights, and may run code", line)


def text_of(error: BaseException) -> str:
    """Return an error's text; nothing where its class cannot say it, as that of a user may not."""
    try:
        return str(error)
    except Exception:
        return ""


def excerpt(value: object, longest: int = LONGEST) -> str:
    """Return the beginning of a text that a different person or program wrote, in one line."""
    # Hidden before it is cut: half a password is not recognised.
    text = _without_controls(" ".join(hide_passwords(str(value)).split()))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _without_controls(text: str) -> str:
    if text.isprintable():
        return text

    def shown(c: str) -> str:
        # The worker of a DataLoader makes an error of a traceback, whose lines are read later.
        return c if c.isprintable() or c == "\n" else " " if c.isspace() else HIDDEN_CHARACTER

    return "".join(map(shown, text))


def describe(value: Any) -> str:
    """Return what ``value`` is, in a few words: its type, and dtype and shape or its parts."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (tuple, list)):
        more = f", and {len(value) - 4} more" if len(value) > 4 else ""
        return f"{type(value).__name__} of ({', '.join(map(describe, value[:4]))}{more})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} of {value.dtype} {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def quoted(value: Any) -> str:
    """Return a value as Python writes it, or what it is where Python cannot: of too many digits."""
    try:
        return repr(value)
    except Exception:  # also a RecursionError, and whatever the method of a user's class raises
        return describe(value)


def loader_error(error: BaseException) -> tuple[str, str]:
    """Return the type's name and the first line of what code of the user raised.

    The worker of a ``DataLoader`` passes on its whole traceback as text, which ends in the error.
    """
    caught = re.match(r"Caught (\w+) in DataLoader worker", text := text_of(error))
    if caught is None:
        return type(error).__name__, first_line(error)
    lines = re.findall(rf"^[\w.<>]*\b{caught[1]}(?:: (.*))?$", text, re.MULTILINE)
    return caught[1], (lines[-1].strip() if lines else "") or caught[1]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LRRTError:
    """Return the error for a name that is not in a registry, naming the nearest one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
    return LRRTError(f"unknown {kind} {quoted(name)}: {hint}")
