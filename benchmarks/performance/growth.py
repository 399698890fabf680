"""What grows with the iterations, with the rows of the data, and with the runs of a store."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.performance.problems import tiny_problem
from benchmarks.performance.rounds import Settings, Timing, interleaved
from benchmarks.performance.rows import Row, compared
from benchmarks.performance.stage import make_store
from mlflow_project.handoff.artifacts import find_run
from mlflow_project.stages.job_runs import finished_jobs
from mlflow_project.tracking import tags
from mlflow_project.tracking.record import get_run
from mlflow_project.tracking.runs import find_runs
from pipeline.data.batches import Batches
from pipeline.data.splits import Data

__all__ = ["fill_store", "rows"]

ITERATIONS = (100, 1_000, 10_000)
ROWS = (1_000, 100_000, 1_000_000)
RUNS = (10, 10_000)
TESTS = 6
"""Finished tests of the study that is resumed."""
SAME = "same"
"""Fingerprint of the one run that is looked for."""
TABLES = ("tags", "params", "latest_metrics")


def rows(
    settings: Settings,
    iterations: tuple[int, ...] = ITERATIONS,
    data_rows: tuple[int, ...] = ROWS,
    runs: tuple[int, ...] = RUNS,
    seconds: float = 45,
) -> Iterator[Row]:
    """Yield a row for every larger size, compared with the smallest."""
    yield from _iterations(settings, iterations, 0.4 * seconds)
    yield from _data(settings, data_rows, 0.3 * seconds)
    yield from _stores(settings, runs, 0.3 * seconds)


def _per(timing: Timing, count: int) -> Timing:
    return Timing([each / count for each in timing.seconds], timing.error)


def _iterations(settings: Settings, counts: tuple[int, ...], seconds: float) -> Iterator[Row]:
    problem = tiny_problem(4096, settings.device)
    cases = {count: problem.tested(count) for count in counts}
    timings = interleaved(cases, settings, seconds)
    first, *others = counts
    for count in others:
        yield compared(
            f"growth: {count:,} iterations",
            f"milliseconds per step of a range test of {count:,} iterations of a small network; "
            f"baseline: of {first:,}",
            _per(timings[count], count),
            _per(timings[first], first),
            unit="ms",
            scale=1e3,
        )


def _data(settings: Settings, sizes: tuple[int, ...], seconds: float) -> Iterator[Row]:
    iterations, cases = 100, {}
    for size in sizes:
        problem = tiny_problem(size, settings.device)
        split = problem.inputs, problem.targets
        data = Data(split, (problem.inputs[:64], problem.targets[:64]), 10)
        batches = Batches(data, problem.batch_size, settings.device, train=True)
        cases[size] = problem.tested(iterations, batches)
    timings = interleaved(cases, settings, seconds)
    first, *others = sizes
    for size in others:
        yield compared(
            f"growth: {size:,} rows of data",
            f"milliseconds per step of a range test of {iterations} iterations over {size:,} "
            f"examples in memory; baseline: over {first:,}",
            timings[size],
            timings[first],
            per=iterations,
            unit="ms",
            scale=1e3,
        )


def _stores(settings: Settings, counts: tuple[int, ...], seconds: float) -> Iterator[Row]:
    made, _ = make_store(settings)
    stores = {}
    for count in counts:
        stores[count] = settings.folder / f"{count}.db"
        shutil.copyfile(made, stores[count])
        fill_store(stores[count], count)
    lookups: dict[str, tuple[Callable[[], Any], str]] = {
        "latest": (lambda: find_run("latest", "lrrt"), "the newest finished range test"),
        "reuse": (_reused, "the finished run of a fingerprint, as for --reuse"),
        "study": (_resumed, f"the {TESTS} finished tests of a study, as for --resume"),
    }
    cases = {
        (name, count): _in_store(store, find)
        for name, (find, _) in lookups.items()
        for count, store in stores.items()
    }
    timings = interleaved(cases, settings, seconds)
    first, *others = counts
    for name, (_, what) in lookups.items():
        for count in others:
            yield compared(
                f"growth: {name}, {count:,} runs",
                f"milliseconds until {what} is found in a SQLite store of {count:,} runs, without "
                f"their series; baseline: of {first:,}",
                timings[name, count],
                timings[name, first],
                unit="ms",
                scale=1e3,
            )


def _reused() -> None:
    found = find_runs({tags.FINGERPRINT: SAME}, finished=True)
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} runs have the fingerprint of one")


def _resumed() -> None:
    (study,) = find_runs({tags.STAGE: "study"}, limit=1)
    found = finished_jobs([get_run(study.info.run_id)])
    if len(found) != TESTS:
        raise RuntimeError(f"{len(found)} tests were found of {TESTS}")


def _in_store(store: Path, find: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        where = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "MLFLOW_EXPERIMENT_NAME": "lrrt"}
        with patch.dict(os.environ, where):
            start = time.perf_counter()
            find()
            return time.perf_counter() - start

    return run


def fill_store(store: Path, runs: int) -> None:
    """Copy the one run of a store, until there are so many, with all but its series.

    The copies are range tests with fingerprints of their own, of which one is ``SAME``; and at the
    end a study that failed, and its tests.
    """
    with closing(sqlite3.connect(store)) as database, database:
        (source,) = database.execute("SELECT run_uuid FROM runs").fetchone()
        numbers = (
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
            "WHERE n < :count)"
        )
        values = {"count": runs - 1, "source": source}
        new = "printf('%032d', n)"
        for table in ("runs", *TABLES):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            copied = {name: name for name in names} | {"run_uuid": new}
            if table == "runs":
                copied |= {"start_time": "start_time + n", "name": "name || n"}
            database.execute(
                f"INSERT INTO {table} ({', '.join(copied)}) {numbers} "
                f"SELECT {', '.join(copied.values())} FROM {table}, numbers "
                "WHERE run_uuid = :source",
                values,
            )
        for tag in (tags.FINGERPRINT, tags.UUID):
            query = "UPDATE tags SET value = run_uuid WHERE key = ? AND run_uuid != ?"
            database.execute(query, (tag, source))
        first, *_, tests, study = range(1, runs)
        change = "UPDATE tags SET value = ? WHERE key = ? AND run_uuid = ?"
        database.execute(change, (SAME, tags.FINGERPRINT, f"{first:032d}"))
        database.execute(change, ("study", tags.STAGE, f"{study:032d}"))
        database.execute("UPDATE runs SET status = 'FAILED' WHERE run_uuid = ?", (f"{study:032d}",))
        for number in range(tests, tests - TESTS, -1):
            test = f"{number:032d}"
            database.execute(change, ("test", tags.STAGE, test))
            parent = "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)"
            database.execute(parent, ("mlflow.parentRunId", f"{study:032d}", test))
