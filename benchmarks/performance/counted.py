"""Runs the stage `lrrt` on a server, and prints as JSON which HTTP requests it made.

It is a process of its own: ``python -m benchmarks.performance.counted ADDRESS ITERATIONS``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import requests

from lrrt_stage import RangeTestOptions
from mlflow_project.stages.lrrt import range_test_stage
from mlflow_project.tracking.connection import connect
from pipeline import RangeTestPlan, Runtime, Task
from pipeline.decide.several_tests import ConsensusOptions

__all__ = ["main"]


def main(address: str, iterations: int) -> None:
    """Print method, path and seconds of every request, from the connection to the end."""
    made: list[tuple[str, str, float]] = []
    send = requests.Session.send

    def timed(session: requests.Session, request: Any, **options: Any) -> requests.Response:
        begun = time.perf_counter()
        try:
            return send(session, request, **options)
        finally:
            taken = time.perf_counter() - begun
            made.append((request.method, urlsplit(request.url).path, taken))

    requests.Session.send = timed  # type: ignore[method-assign, assignment]
    connect(address, "lrrt")
    # One that reaches its last iteration, which has the most to log.
    options = RangeTestOptions(iterations=iterations, lr_end=1.0, stop_multiple=None)
    plan = RangeTestPlan(options)
    range_test_stage(Task(model="mlp"), Runtime(device="cpu"), plan, ConsensusOptions())
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
