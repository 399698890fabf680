"""The command line: commands, their options, and what they print."""

from __future__ import annotations

import sys
from typing import NoReturn

from mlflow_project.cli.lines import INTERRUPTED, interrupted_line

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit, see :func:`mlflow_project.cli.entry.main`."""
    try:
        from mlflow_project.cli import entry  # with torch and MLflow, which takes seconds
    except KeyboardInterrupt as interrupt:
        print(interrupted_line(interrupt), file=sys.stderr)
        sys.exit(INTERRUPTED)
    entry.main(arguments)
