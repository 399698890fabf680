"""Cases that take turns, so that a busy machine slows all of them down alike."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

__all__ = ["ROOT", "Settings", "Timing", "interleaved", "process", "python", "reason_of"]

ROOT = Path(__file__).parents[2]
LONGEST_PROCESS = 300
"""Seconds after which a process is ended that does not end by itself."""
LEAST_ROUNDS = 1


@dataclass(frozen=True)
class Settings:
    """How everything is measured."""

    folder: Path
    """For stores and files that a measurement leaves; it is removed at the end."""
    rounds: int = 5
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 2
    end: float = float("inf")
    """Time, as of ``time.monotonic()``, at which no measurement begins any more."""

    @property
    def left(self) -> float:
        """Seconds that are left for all measurements."""
        return self.end - time.monotonic()

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is measured: no store, nothing of the network.

        Processes of the project and those they are compared with have the same one.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            # Without compiled modules, Python would compile MLflow in every process.
            if not name.startswith(("MLFLOW_", "LRRT_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        return kept | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(self.threads),
            "MPLBACKEND": "agg",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LRRT_WORK_DIR": str(self.folder / "work"),
        }


@dataclass
class Timing:
    """The seconds of a case, round by round; ``error`` says why they end."""

    seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return median(self.seconds)


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    settings: Settings,
    seconds: float,
    *,
    rounds: float = 1,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Return the timings of ``cases``, of which each is called once in every round.

    The first round warms up and is not counted; without ``warm_up``, the caller has done that.
    Every second round goes through the cases backwards. There are ``rounds`` times as many as the
    settings say, but they end before they would take more than ``seconds``, or more than is left;
    one is counted in any case. A case that returns a float has measured itself. One that raises is
    left out from then on.
    """
    timings = {name: Timing() for name in cases}
    most = max(LEAST_ROUNDS, round(rounds * settings.rounds))
    begun, longest = time.monotonic(), 0.0
    for number in range(0 if warm_up else 1, most + 1):
        round_begun = time.monotonic()
        left = min(seconds - (round_begun - begun), settings.left)
        if number > LEAST_ROUNDS and longest > left:
            break
        names = [*cases] if number % 2 else [*reversed(cases)]
        gc.collect()
        for name in names:
            timing = timings[name]
            if timing.error:
                continue
            try:
                taken = _timed(cases[name], settings.device)
            except Exception as error:
                timing.error = reason_of(error)
                continue
            if number > 0:
                timing.seconds.append(taken)
        longest = max(longest, time.monotonic() - round_begun)
    return timings


def _timed(case: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    own = case()
    _finish(device)
    taken = time.perf_counter() - start
    return own if isinstance(own, float) else taken


def _finish(device: torch.device) -> None:
    """Wait for the work on the device, which would otherwise be counted elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def python(*arguments: str | Path) -> list[str]:
    """Return the command that runs this Python."""
    return [sys.executable, *map(str, arguments)]


def process(
    command: Sequence[str],
    settings: Settings,
    *,
    code: int = 0,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a process to its end, and return its output; it has to end with the exit ``code``."""
    ended = subprocess.run(
        command,
        env=settings.environment() | dict(variables or {}),
        cwd=folder or settings.folder,
        capture_output=True,
        text=True,
        timeout=LONGEST_PROCESS,
    )
    if ended.returncode != code:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"exit code {ended.returncode} in place of {code}: {' '.join(last)}")
    return ended.stdout


def reason_of(error: BaseException) -> str:
    """Return an error in one line."""
    first = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *first])
