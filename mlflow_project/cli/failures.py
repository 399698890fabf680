"""How a command ends that does not end well: one line, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import optuna
import rich_click as click
from mlflow.exceptions import MlflowException
from optuna.exceptions import OptunaError
from safetensors import SafetensorError
from sqlalchemy.exc import SQLAlchemyError

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords
from mlflow_project.cli.commands import commands
from mlflow_project.cli.lines import INTERRUPTED, error_line, interrupted_line
from mlflow_project.tracking.record import unsent_records
from mlflow_project.tracking.runs import fail_project_run
from mlflow_project.tracking.store import reason_of

__all__ = ["run_command"]

USAGE_ERROR, NOT_SENT = 2, 4
OF_THE_MACHINE = (OSError, MlflowException, OptunaError, SafetensorError, SQLAlchemyError)
"""What disks, folders and stores raise: nothing that a traceback of this project explains."""


def run_command(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; print what ended it as one line."""
    # As a warning it would print the traceback of an error that ends a trial.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        code = commands.main(arguments, standalone_mode=False)
    except LRRTError as error:
        return _fail(arguments, str(error))
    except click.ClickException as error:
        return _fail(arguments, error.format_message())
    except OF_THE_MACHINE as error:
        remedy = "check the free space and the rights of the folders, and the tracking store"
        return _fail(arguments, f"{type(error).__name__}: {first_line(error)}: {remedy}")
    except (KeyboardInterrupt, click.Abort) as interrupt:
        print(interrupted_line(_told(interrupt)), file=sys.stderr)
        return INTERRUPTED
    code = code if isinstance(code, int) else 0
    return NOT_SENT if code == 0 and unsent_records() else code


def _told(interrupt: BaseException | None) -> BaseException | None:
    """Return the interrupt that says what is kept.

    click raises an Abort while it handles what a stage raised, and a second Ctrl-C says nothing.
    """
    while interrupt is not None:
        if isinstance(interrupt, KeyboardInterrupt) and str(interrupt):
            return interrupt
        interrupt = interrupt.__context__
    return None


def _fail(arguments: Sequence[str], reason: str) -> int:
    given = [*arguments, *(text for name, text in os.environ.items() if name.startswith("MLFLOW_"))]
    line = error_line(hide_passwords(reason), given)
    print(f"Error: {line}", file=sys.stderr)
    try:
        fail_project_run(next(iter(arguments), ""), line)
    except Exception as error:  # the store itself may be what is wrong
        reason = error_line(reason_of(error), given)
        print(f"(the run could not be marked as failed: {reason})", file=sys.stderr)
    return USAGE_ERROR
