"""What whole commands cost, against scripts that do and log the same without the project."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.performance.rounds import Settings, interleaved, process, python
from benchmarks.performance.rows import Row, compared

__all__ = ["make_store", "rows"]

BASELINES = Path(__file__).parent / "baselines"
MAIN_ROUNDS = 0.6
"""Times as many rounds as of other cases."""


def rows(
    settings: Settings,
    seconds: float = 90,
    main_seconds: float = 110,
    trials: int = 8,
    epochs: int = 20,
) -> Iterator[Row]:
    """Yield the rows of `lrrt` and `main`, each in a store that was made before."""
    ours, steps = make_store(settings)
    theirs = settings.folder / "theirs.db"
    shutil.copyfile(ours, theirs)

    def stage(*arguments: str) -> list[str]:
        where = "--tracking-uri", f"sqlite:///{ours}", "--experiment", "lrrt"
        return python("-m", "mlflow_project", *arguments, *where)

    def script(name: str, *arguments: str) -> list[str]:
        where = "--store", f"sqlite:///{theirs}", "--steps", str(steps)
        return python(BASELINES / name, *where, *arguments)

    cases = {
        "lrrt": partial(process, stage("lrrt"), settings),
        "script": partial(process, script("bare_lrrt.py"), settings),
    }
    # The run that made the store has read the files of the same packages, which warms up both.
    timings = interleaved(cases, settings, seconds, warm_up=False)
    yield compared(
        "stage: lrrt",
        f"seconds of `lrrt-stage lrrt` in an existing SQLite store; baseline: bare_lrrt.py, which "
        f"takes and logs {steps} steps as well",
        timings["lrrt"],
        timings["script"],
        target=1.15,
    )
    options = ["--refine", "true", "--trials", str(trials), "--trial-epochs", "1"]
    options += ["--epochs", str(epochs)]
    cases = {
        "main": partial(process, stage("main", *options), settings),
        "script": partial(
            process,
            script("bare_main.py", "--trials", str(trials), "--epochs", str(epochs)),
            settings,
        ),
    }
    timings = interleaved(cases, settings, main_seconds, rounds=MAIN_ROUNDS, warm_up=False)
    yield compared(
        "stage: main",
        f"seconds of `lrrt-stage main {' '.join(options)}`; baseline: bare_main.py, with as many "
        "steps, trials, epochs, runs, points and files",
        timings["main"],
        timings["script"],
        target=1.25,
    )


def make_store(settings: Settings) -> tuple[Path, int]:
    """Return a SQLite store in which `lrrt` has run once, and the steps that this run logged."""
    store = settings.folder / "ours.db"
    command = python("-m", "mlflow_project", "lrrt", "--tracking-uri", f"sqlite:///{store}")
    process([*command, "--experiment", "lrrt"], settings)
    with closing(sqlite3.connect(store)) as database:
        query = "SELECT COUNT(*) FROM metrics WHERE key = 'train_loss'"
        (steps,) = database.execute(query).fetchone()
    return store, steps
