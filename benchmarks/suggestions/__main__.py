"""Compares the learning rates that rules suggest by training at them: ``make suggestions``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.suggestions.peers import PEERS, installed_peers
from benchmarks.suggestions.pictures import write_figures
from benchmarks.suggestions.problems import half
from benchmarks.suggestions.report import Sizes, tables
from benchmarks.suggestions.work import Work

HALVES = {"development": False, "held-back": True}


@click.command()
@click.option("--half", "which", type=click.Choice([*HALVES, "both"]), default="both")
@click.option("--seeds", default=3, help="Initial weights and data orders of each problem.")
@click.option("--long-seeds", default=1, help="The same for the long trainings.")
@click.option("--workers", default=2, help="Processes, with one thread each.")
@click.option(
    "--cache",
    default=".benchmarks",
    type=click.Path(path_type=Path),
    help="Folder of everything that was computed; a command that was interrupted goes on from it.",
)
@click.option(
    "--out",
    default=".benchmarks/tables",
    type=click.Path(path_type=Path),
    help="Folder for the tables as CSV and markdown.",
)
def main(which: str, seeds: int, long_seeds: int, workers: int, cache: Path, out: Path) -> None:
    """Train at the learning rates that rules and other LR finders suggest, and rank them."""
    peers = installed_peers()
    if missing := [name for name in PEERS if name not in peers]:
        names = ", ".join(missing)
        click.echo(f"left out: {names}; pip install 'lrrt-stage[benchmarks]' for all", err=True)
    work = Work(cache, workers)
    for name, held_back in HALVES.items():
        if which not in (name, "both"):
            continue
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        shown = []
        for table in tables(work, half(held_back), peers, Sizes(seeds, long_seeds)):
            table.to_csv(folder)
            if table.shown:
                shown.append(table.to_markdown())
                click.echo(f"{name}: {shown[-1]}")
        (folder / "tables.md").write_text("\n".join(shown))
        if not held_back:
            write_figures(work, half(held_back), peers, folder)


if __name__ == "__main__":
    main()
