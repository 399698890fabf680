"""Prints the tables: ``python -m benchmarks.scale``. It needs PostgreSQL, and takes minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.performance.rounds import Settings
from benchmarks.scale.server import lines, measure

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        costs, rush = measure(Settings(Path(folder), threads=1))
    print("\n".join(lines(costs, rush)))
    raise SystemExit(1 if rush.incomplete else 0)
