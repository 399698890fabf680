"""How long the imports take, and which of them take most of it."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from benchmarks.performance.rounds import LONGEST_PROCESS, Settings, interleaved, process, python
from benchmarks.performance.rows import Row, compared

__all__ = ["expensive_imports", "rows"]

LIBRARY = "from lrrt_stage import range_test, suggest"
HANDOFF = "from mlflow_project import load_handoff"
CASES = {
    "imports: lrrt_stage": (LIBRARY, "import torch, numpy", 1.1),
    "imports: load_handoff": (HANDOFF, "import torch, mlflow", None),
}
"""Row -> what is imported, what that is compared with, and the target."""
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")
SHOWN = 10


def rows(settings: Settings, seconds: float = 40) -> Iterator[Row]:
    """Yield a row for the library and one for the hand-off, and the imports of a command."""
    codes = [code for case in CASES.values() for code in case[:2]]
    cases = {code: partial(process, python("-c", code), settings) for code in codes}
    with suppress(Exception):  # which is an error of its own row below
        cases[HANDOFF]()  # warms up: it reads the files of all the others
    timings = interleaved(cases, settings, seconds, warm_up=False)
    for name, (ours, theirs, target) in CASES.items():
        what = f"seconds of a process with `{ours}`; baseline: `{theirs}`"
        yield compared(name, what, timings[ours], timings[theirs], target=target)
    store = f"sqlite:///{settings.folder / 'imports.db'}"
    command = "-m", "mlflow_project", "lrrt", "--tracking-uri", store, "--experiment", "lrrt"
    listing = expensive_imports(command, settings)
    total = sum(each["self"] for each in listing.values())
    yield Row(
        "imports: lrrt-stage lrrt",
        f"seconds that a whole `lrrt-stage lrrt` imports by -X importtime, which slows it down; "
        f"the listing has the {SHOWN} packages with the most of their own",
        total,
        rounds=1,
        listing=dict([*listing.items()][:SHOWN]),
    )


def expensive_imports(command: Sequence[str], settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the seconds by top-level package, those with the most of their own first.

    ``command`` are arguments of Python.

    ``self`` is what the modules of a package take themselves. ``cumulative`` has those of others
    that they import as well, so that a package which another one has imported counts in both.
    """
    ended = subprocess.run(
        python("-X", "importtime", *command),
        env=settings.environment(),
        cwd=settings.folder,
        capture_output=True,
        text=True,
        timeout=LONGEST_PROCESS,
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {ended.returncode}")
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"self": 0.0, "cumulative": 0.0})
    # Python prints a module after those that it imports: read backwards, its importers come first.
    above: list[tuple[int, str]] = []
    for own, cumulative, indent, name in reversed(LINE.findall(ended.stderr)):
        package, depth = name.partition(".")[0], len(indent)
        while above and above[-1][0] >= depth:
            above.pop()
        found[package]["self"] += int(own) / 1e6
        if package not in [each for _, each in above]:
            found[package]["cumulative"] += int(cumulative) / 1e6
        above.append((depth, package))
    ordered = sorted(found.items(), key=lambda item: -item[1]["self"])
    return {
        name: {kind: round(value, 4) for kind, value in times.items()} for name, times in ordered
    }
