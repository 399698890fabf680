"""Requests, rows and bytes of each stage on PostgreSQL with proxied artifacts, and many clients."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.performance.rounds import Settings
from benchmarks.performance.server import mlflow_server
from tests.forked_python import programs
from tests.postgresql import postgresql

__all__ = ["Cost", "Rush", "lines", "measure"]

SMALL = ("--model", "mlp", "--batch-size", "128", "--device", "cpu")
LRRT = ("lrrt", *SMALL, "--iterations", "100")
# Reaches its last iteration, so that it is known how many values there are.
SHORT = ("lrrt", *SMALL, "--iterations", "40", "--lr-end", "1", "--stop-multiple", "none")
SHORT_ITERATIONS = 40
CLIENTS, TESTS, SERVER_WORKERS = 20, 100, 2
LONGEST = 300


@dataclass(frozen=True)
class Counts:
    """What there is at a moment."""

    rows: dict[str, int]
    database: int
    files: int

    def since(self, before: Counts) -> Counts:
        """Return what was added."""
        rows = {name: number - before.rows.get(name, 0) for name, number in self.rows.items()}
        return Counts(
            {name: number for name, number in rows.items() if number},
            self.database - before.database,
            self.files - before.files,
        )


@dataclass(frozen=True)
class Cost:
    """What a command cost."""

    name: str
    requests: int
    seconds: float
    added: Counts


@dataclass(frozen=True)
class Rush:
    """What became of many clients at once."""

    clients: int
    seconds: float
    requests: int
    per_second: float
    """From the end of the first request to that of the last one."""
    failures: list[str]
    """Requests without an answer (0), or with an error of the server, all of which were repeated
    if every run is complete."""
    slowest: float
    incomplete: list[str]
    """Runs that are not FINISHED, or lack a value."""


def measure(settings: Settings) -> tuple[list[Cost], Rush]:
    """Measure the stages one after the other, and then many clients."""
    with (
        postgresql("mlflow") as store,
        mlflow_server(settings, store, SERVER_WORKERS) as address,
    ):
        client = _Client(settings, address, store)
        client.run("first", SHORT)  # which makes the experiment
        study = ("study", *SMALL, "--iterations", "40", "--tests", str(TESTS), "--workers", "2")
        costs = [
            client.cost("lrrt", LRRT),
            client.cost("train", ("train", "--lrrt-run-id", "latest", "--epochs", "5")),
            client.cost(f"study of {TESTS}", study),
        ]
        return costs, client.rush(CLIENTS)


@contextmanager
def _ended(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """End those that still run after the block, as after an error in it."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()  # which does nothing to one that has ended
            process.wait()


class _Client:
    def __init__(self, settings: Settings, address: str, store: str) -> None:
        self.settings, self.address, self.store = settings, address, store
        self.environment = settings.environment() | {
            "MLFLOW_TRACKING_URI": address,
            "MLFLOW_EXPERIMENT_NAME": "scale",
        }

    def start(self, name: str, command: Sequence[str]) -> tuple[subprocess.Popen, Path]:
        path = self.settings.folder / f"{name}.json"
        line = [programs() / "python", "-m", "benchmarks.scale.counted", path, *command]
        with (self.settings.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                line, env=self.environment, cwd=self.settings.folder, stdout=log, stderr=log
            )
        return process, path

    def run(self, name: str, command: Sequence[str]) -> list[tuple[int, str, float, float]]:
        process, path = self.start(name, command)
        with _ended([process]):
            if process.wait(LONGEST):
                raise RuntimeError(path.with_suffix(".log").read_text("utf-8"))
        return json.loads(path.read_text("utf-8"))

    def cost(self, name: str, command: Sequence[str]) -> Cost:
        before, begun = self.counts(), time.monotonic()
        made = self.run(name.replace(" ", "-"), command)
        return Cost(name, len(made), time.monotonic() - begun, self.counts().since(before))

    def counts(self) -> Counts:
        with psycopg.connect(self.store) as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            rows = {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for (name,) in tables
            }
            query = "SELECT pg_database_size(current_database())"
            size = connection.execute(query).fetchone()[0]
        files = (self.settings.folder / "server-files").rglob("*")
        return Counts(rows, size, sum(path.stat().st_size for path in files if path.is_file()))

    def runs(self) -> list[Run]:
        client = MlflowClient(self.address)
        experiment = client.get_experiment_by_name("scale")
        query = "tags.`lrrt.stage` = 'lrrt'"
        return list(client.search_runs([experiment.experiment_id], query, max_results=1000))

    def rush(self, clients: int) -> Rush:
        whole = {run.info.run_id for run in self.runs()}
        begun = time.monotonic()
        started = [self.start(f"client-{n}", SHORT) for n in range(clients)]
        processes = [process for process, _ in started]
        with _ended(processes):
            codes = [process.wait(LONGEST) for process in processes]
        seconds = time.monotonic() - begun
        made = [each for _, path in started for each in json.loads(path.read_text("utf-8"))]
        new = [run for run in self.runs() if run.info.run_id not in whole]
        incomplete = [f"exit code {code}" for code in codes if code]
        incomplete += [run.info.run_id for run in new if not self.is_whole(run, new[0])]
        incomplete += ["a run is missing"] * (clients - len(new))
        ends = [end for *_, end in made]
        return Rush(
            clients,
            seconds,
            len(made),
            len(made) / (max(ends) - min(ends)),
            [f"{status} {path}" for status, path, *_ in made if status == 0 or status >= 500],
            max(taken for *_, taken, _ in made),
            incomplete,
        )

    def is_whole(self, run: Run, other: Run) -> bool:
        """Return whether a run is complete: it has the metrics of the others, and all values."""
        history = MlflowClient(self.address).get_metric_history
        values = [len(history(run.info.run_id, name)) for name in ("lr", "train_loss")]
        return (
            run.info.status == "FINISHED"
            and values == [SHORT_ITERATIONS] * 2
            and run.data.metrics.keys() == other.data.metrics.keys()
        )


def lines(costs: Sequence[Cost], rush: Rush) -> Iterator[str]:
    """Yield the table of the costs, and what became of the clients."""
    yield f"{'':14}{'requests':>10}{'rows':>9}{'database kB':>13}{'files kB':>10}{'seconds':>9}"
    for each in costs:
        rows = sum(each.added.rows.values())
        sizes = f"{each.added.database / 1e3:>13.0f}{each.added.files / 1e3:>10.0f}"
        yield f"{each.name:14}{each.requests:>10}{rows:>9}{sizes}{each.seconds:>9.1f}"
    for each in costs:
        ordered = sorted(each.added.rows.items(), key=lambda item: -item[1])
        yield f"rows of {each.name}: " + ", ".join(f"{name} {n}" for name, n in ordered)
    yield (
        f"{rush.clients} clients at once, {rush.seconds:.1f} s: {rush.requests} requests, "
        f"{rush.per_second:.0f} a second, the slowest {rush.slowest:.2f} s"
    )
    yield f"failed requests: {', '.join(rush.failures) or 'none'}"
    yield f"incomplete runs: {', '.join(rush.incomplete) or 'none'}"
