"""Files that are complete, or are not there, and where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrrt_stage.errors import LRRTError

__all__ = ["PART", "expanded", "part_of", "replacing", "write_text"]

PART = ".part-"
"""How the name of a file begins that is being written; the ending may choose its format."""


def expanded(path: str) -> Path:
    """Return a path with the home folder in place of ``~``.

    Raises
    ------
    LRRTError
        If there is none, as for a user whom the machine does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise LRRTError(
            f"there is no home folder for {path}: set HOME, or name a full path"
        ) from None


def part_of(path: Path) -> Path:
    """Return the file that :func:`replacing` writes first."""
    return path.with_name(PART + path.name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which replaces ``path`` at the end of the block.

    An earlier file stays if the block raises, or the process ends in it.
    """
    part = part_of(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, in UTF-8, as the whole of a file."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
