"""How many copies of the model and its optimizer a range test holds at its peak."""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks.performance.rounds import Settings, process, python, reason_of
from benchmarks.performance.rows import Row

__all__ = ["rows"]

TARGET = 1.0
NAMES = {"range test": "without a probe", "probe": "with a probe"}


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows of SGD with momentum and of AdamW, each without and with a probe."""
    for optimizer in ("sgd", "adamw"):
        try:
            bare, error = _resident("bare", optimizer, settings), ""
        except Exception as failure:
            bare, error = {}, reason_of(failure)
        for case, name in NAMES.items():
            measured = None
            if not error:
                try:
                    peak = _resident(case, optimizer, settings)["peak"]
                    # A hundredth is a few megabytes, by which two runs of one case differ.
                    measured = round((peak - bare["peak"]) / bare["copy"], 2)
                except Exception as failure:
                    error = reason_of(failure)
            gigabytes = f" ({bare['copy'] / 1e9:.1f} GB)" if bare else ""
            yield Row(
                f"memory: {optimizer}, {name}",
                "memory at the peak of a range test above that of a bare loop of as many steps, in "
                f"copies of parameters, buffers and optimizer state{gigabytes}, of a model of 50 "
                "million parameters",
                measured,
                target=TARGET,
                unit="copies",
                rounds=int(measured is not None),
                compares="measured",
                error=error,
            )


def _resident(case: str, optimizer: str, settings: Settings) -> dict[str, int]:
    command = python("-m", "benchmarks.performance.resident", case, optimizer)
    return json.loads(process([*command, str(settings.device)], settings))
