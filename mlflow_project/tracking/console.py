"""What a person sees while a stage runs and when it ends."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lrrt_stage.settings import hide_passwords

__all__ = ["note", "progress", "summary", "ui_command"]

OUT = Console(highlight=False, markup=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that moves a bar; there is none without a terminal."""
    with Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def note(text: str) -> None:
    """Print one line, away from standard output."""
    ERR.print(hide_passwords(text))


def summary(title: str, rows: Mapping[str, str], console: Console = OUT) -> None:
    """Print a short table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def ui_command(tracking_uri: str) -> str:
    """Return the command that opens the MLflow UI on this store, or a server's address."""
    tracking_uri = hide_passwords(tracking_uri)
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri.rstrip("/")
    # A shell does not find mlflow where its environment is not active, as in a Makefile.
    active = sys.prefix in (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))
    beside = Path(sys.executable).parent / "mlflow"
    mlflow = "mlflow" if active or not beside.exists() else os.path.relpath(beside)
    return f"{mlflow} ui --backend-store-uri {shlex.quote(tracking_uri)}"
