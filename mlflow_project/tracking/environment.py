"""What environment and options say of the store, known without MLflow and without a request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lrrt_stage.settings import Options, setting

__all__ = ["MAX_WAIT", "RUN_ID", "WORK_DIR", "OutageOptions", "in_project_folder"]

RUN_ID = "MLFLOW_RUN_ID"
"""Environment variable in which ``mlflow run`` names its run."""
WORK_DIR = "LRRT_WORK_DIR"
"""Environment variable with the work folder."""
MAX_WAIT = 60.0
"""Seconds to wait for the store, unless an option says otherwise."""


@dataclass(frozen=True)
class OutageOptions(Options):
    """What happens while the store is away."""

    work_dir: str | None = setting(
        None,
        "Folder for work in progress and for what the store has not taken; none: that of "
        "LRRT_WORK_DIR, else .lrrt here.",
    )
    max_wait: float = setting(
        MAX_WAIT,
        "Seconds to wait in total for a store that does not answer.",
        minimum=0,
        maximum=86_400,
    )


def in_project_folder() -> bool:
    """Return whether ``mlflow run`` runs this project, from whose folder the stage then starts.

    Where the user called it is not known there: the shell that it starts resets ``PWD``.
    """
    return RUN_ID in os.environ and Path(__file__).parents[2].samefile(".")
