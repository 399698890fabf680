"""Measures what the project costs, and prints one table: ``make bench``."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click
import torch

from benchmarks.performance.machine import machine, versions
from benchmarks.performance.rounds import ROOT, Settings, reason_of
from benchmarks.performance.rows import Row, table, unmeasured
from lrrt_stage import resolve_device

GROUPS = (
    "prompt",
    "imports",
    "steps",
    "confidence",
    "stage",
    "server",
    "workers",
    "memory",
    "growth",
    "gpu",
)
"""Groups of rows, each a module, in the order in which they are measured."""
MINUTES = 10
"""What all groups together may take."""
BUSY = 0.5
"""Load of the machine, before anything is measured, from which a person is told of it."""


def measured(group: str, settings: Settings) -> Iterator[Row]:
    """Yield the rows of a group; an error becomes one more row, and those before it are kept."""
    if settings.left <= 0:
        yield unmeasured(group, "all rows of this group", f"{MINUTES} minutes were over before")
        return
    torch.set_num_threads(settings.threads)
    try:
        rows: Callable[[Settings], Iterator[Row]]
        rows = import_module(f"benchmarks.performance.{group}").rows
        yield from rows(settings)
    except Exception as error:
        yield Row(group, "the rows of this group that are missing", error=reason_of(error))


@click.command()
@click.option(
    "--rows",
    "groups",
    multiple=True,
    type=click.Choice(GROUPS),
    help="Groups of rows to measure; all by default.",
)
@click.option("--rounds", default=5, show_default=True, help="Rounds of each case, at most.")
@click.option("--device", default="auto", show_default=True, help="Where steps are taken.")
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option(
    "--output",
    default=ROOT / "benchmarks" / "results.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the rows, the versions and the machine.",
)
@click.pass_context
def main(
    context: click.Context,
    groups: tuple[str, ...],
    rounds: int,
    device: str,
    threads: int,
    output: Path,
) -> None:
    """Compare what the project costs with the least that the same work takes.

    The exit code is 1 if a row could not be measured for an error.
    """
    begun, rows = time.monotonic(), []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="lrrt-bench-") as folder:
        settings = Settings(
            Path(folder), rounds, resolve_device(device), threads, begun + 60 * MINUTES
        )
        for group in GROUPS:
            if groups and group not in groups:
                continue
            click.echo(f"{time.monotonic() - begun:4.0f} s: {group}", err=True)
            own = Path(folder) / group
            own.mkdir()
            rows += measured(group, replace(settings, folder=own))
    for line in table(rows):
        click.echo(line)
    if load and load > BUSY:
        click.echo(f"The load of the machine was {load:.1f} before: other work took part of it.")
    content = {
        "rows": [row.to_json() for row in rows],
        "versions": versions(),
        "machine": machine(settings.device, threads) | {"load_before": load},
        "seconds": round(time.monotonic() - begun, 1),
    }
    output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if any(row.error for row in rows):
        context.exit(1)


if __name__ == "__main__":
    main()
