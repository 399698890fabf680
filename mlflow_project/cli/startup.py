"""How a command starts: while it is imported, it only has to end at once when asked."""

from __future__ import annotations

import gc
import os
import signal
from functools import cache
from typing import NoReturn

from mlflow_project.cli.lines import INTERRUPTED, interrupted_line

__all__ = ["begin_imports", "begin_work", "interrupt"]

_before: dict[signal.Signals, object] = {}
"""Signals that are answered at once, and how they were before."""


def begin_imports() -> None:
    """End at once from now on when a signal comes: not every module would let it pass.

    Nor is garbage looked for. Importing torch and MLflow makes a million objects, all of which
    stay; to look through them again and again takes a fifth of the time.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        # What runs in the background may have been started with a signal ignored, and stays so.
        if signal.getsignal(each) is not signal.SIG_IGN:
            _before[each] = signal.signal(each, _leave)
    gc.disable()


def begin_work() -> None:
    """Answer signals as a stage does, and collect garbage, from now on: all is imported."""
    if gc.isenabled():  # it has begun, or nothing waits for it
        return
    if signal.SIGINT in _before:
        signal.signal(signal.SIGINT, _before.pop(signal.SIGINT))  # type: ignore[arg-type]
    if signal.SIGTERM in _before:
        del _before[signal.SIGTERM]
        signal.signal(signal.SIGTERM, interrupt)
    _keep_imports()
    gc.enable()


@cache
def _keep_imports() -> None:
    """Look at what is there never again, since it stays; once in a process."""
    gc.freeze()


def interrupt(signum: int, frame: object) -> None:
    """Treat the first SIGTERM as Ctrl-C, and let the clean-up that follows finish."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("terminated")


def _leave(signum: int, frame: object) -> NoReturn:
    os.write(2, f"{interrupted_line(None)}\n".encode())
    os._exit(INTERRUPTED)
