"""Runs a command of the project, and writes to a file what became of its HTTP requests.

It is a process of its own: ``python -m benchmarks.scale.counted FILE COMMAND…``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from mlflow_project.cli import entry

__all__ = ["main"]


def main(path: str, arguments: list[str]) -> None:
    """Write status, path, seconds, and end of every request; a status is 0 without an answer."""
    made: list[tuple[int, str, float, float]] = []
    send = requests.Session.send

    def timed(session: requests.Session, request: Any, **options: Any) -> requests.Response:
        begun, status = time.time(), 0
        try:
            response = send(session, request, **options)
            status = response.status_code
            return response
        finally:
            now = time.time()
            made.append(
                (status, f"{request.method} {urlsplit(request.url).path}", now - begun, now)
            )

    requests.Session.send = timed  # type: ignore[method-assign, assignment]
    try:
        entry.main(arguments)
    finally:
        Path(path).write_text(json.dumps(made), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
