"""How the reason of a failure becomes one line that any terminal and any store can take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

__all__ = ["INTERRUPTED", "error_line", "interrupted_line"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""
LONGEST_INPUT, LONGEST_LINE = 200, 2_000


def interrupted_line(interrupt: BaseException | None) -> str:
    """Return how a command says that it was interrupted, and what is kept, where it knows that."""
    return f"Interrupted: {_plain(str(interrupt or '')) or 'stopped'}"


def error_line(reason: str, arguments: Sequence[str]) -> str:
    """Return a reason as one line without control characters, and of at most 2,000 characters.

    Of what was typed, the ``arguments``, it repeats at most 200 characters in a row: the first and
    the last of them. Here, since click, MLflow and torch repeat it in their messages as well.
    """
    line = _plain(reason)
    runs = {
        hash(text[start : start + LONGEST_INPUT])
        for argument in arguments
        for text in map(_plain, _forms(argument))
        for start in range(len(text) - LONGEST_INPUT + 1)
    }
    kept: list[str] = []
    start = 0
    while start < len(line):
        end = start
        while hash(line[end : end + LONGEST_INPUT]) in runs:
            end += 1
        if end > start + 1:
            run = line[start : end - 1 + LONGEST_INPUT]
            kept.append(_cut(run, LONGEST_INPUT))
            start += len(run)
        else:
            kept.append(line[start])
            start += 1
    return _cut("".join(kept), LONGEST_LINE)


def _forms(argument: str) -> Iterator[str]:
    """Yield how an argument appears in a message: as it is, quoted, or as the object in a JSON."""
    if len(argument) > LONGEST_INPUT // 2:  # shorter ones cannot become too long
        yield from (argument, repr(argument))
        try:
            value = json.loads(argument)
            yield from (repr(value), json.dumps(value, sort_keys=True))
        except (ValueError, TypeError, RecursionError):
            pass


def _plain(text: str) -> str:
    shown = (c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return "".join(shown)


def _cut(text: str, length: int) -> str:
    """Return a text without its middle if it is longer than ``length``."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
