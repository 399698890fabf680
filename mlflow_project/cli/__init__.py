"""The command line: commands, their options, and what they print."""

from mlflow_project.cli.entry import main

__all__ = ["main"]
