"""How long a person waits for help, a version, or the answer to a mistyped option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from benchmarks.performance.rounds import Settings, interleaved, process, python
from benchmarks.performance.rows import Row, compared

__all__ = ["rows"]

COMMANDS = {
    "lrrt-stage --help": (["--help"], 0),
    "lrrt-stage --version": (["--version"], 0),
    "lrrt-stage lrrt --help": (["lrrt", "--help"], 0),
    "lrrt-stage lrrt --epocs 5": (["lrrt", "--epocs", "5"], 2),
}
"""Command -> its arguments and its exit code."""
TIMES, MORE = 3, 0.3
"""The target: so many times the baseline, and so many seconds more."""


def rows(settings: Settings, seconds: float = 50) -> Iterator[Row]:
    """Yield a row for each command, compared with a process that imports click."""
    cases = {"click": partial(process, python("-c", "import click"), settings)}
    for name, (arguments, code) in COMMANDS.items():
        command = python("-m", "mlflow_project", *arguments)
        cases[name] = partial(process, command, settings, code=code)
    # All commands read the same files, so that two processes are enough to warm up.
    for name in ("click", "lrrt-stage --version"):
        with suppress(Exception):  # which is an error of its own row below
            cases[name]()
    timings = interleaved(cases, settings, seconds, warm_up=False)
    baseline = timings.pop("click")
    target = TIMES * baseline.median + MORE if baseline.seconds else None
    for name, timing in timings.items():
        yield compared(
            f"prompt: {name}",
            f"seconds of `{name}`; baseline: python -c 'import click'; target: {TIMES} times the "
            f"baseline and {MORE} s",
            timing,
            baseline,
            target=target,
            compares="measured",
        )
