"""How a command ends that does not end well: one line, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import rich_click as click

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import hide_passwords
from mlflow_project.cli.commands import commands
from mlflow_project.cli.lines import INTERRUPTED, error_line, interrupted_line
from mlflow_project.tracking.environment import RUN_ID

__all__ = ["run_command"]

USAGE_ERROR, NOT_SENT = 2, 4
OF_THE_MACHINE = {
    "builtins.OSError",
    "mlflow.exceptions.MlflowException",
    "optuna.exceptions.OptunaError",
    "safetensors._safetensors_rust.SafetensorError",
    "sqlalchemy.exc.SQLAlchemyError",
}
"""What disks, folders and stores raise: nothing that a traceback of this project explains. By their
names, since a command that has not imported them does not fail with them."""


def run_command(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; print what ended it as one line."""
    try:
        code = commands.main(arguments, standalone_mode=False, obj=list(arguments))
    except LRRTError as error:
        return _fail(arguments, str(error))
    except click.ClickException as error:
        return _fail(arguments, error.format_message())
    except (KeyboardInterrupt, click.Abort) as interrupt:
        print(interrupted_line(_told(interrupt)), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
        if OF_THE_MACHINE.isdisjoint(names):
            raise
        remedy = "check the free space and the rights of the folders, and the tracking store"
        return _fail(arguments, f"{type(error).__name__}: {first_line(error)}: {remedy}")
    code = code if isinstance(code, int) else 0
    return NOT_SENT if code == 0 and _is_unsent() else code


def _is_unsent() -> bool:
    """Return whether the store has not taken all that a stage has logged."""
    # A command that has run no stage has not imported this.
    record = sys.modules.get("mlflow_project.tracking.record")
    return record is not None and bool(record.unsent_records())


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
    if RUN_ID not in os.environ:
        return USAGE_ERROR
    from mlflow_project.tracking.runs import fail_project_run
    from mlflow_project.tracking.store import reason_of

    try:
        fail_project_run(next(iter(arguments), ""), line)
    except Exception as error:  # the store itself may be what is wrong
        reason = error_line(reason_of(error), given)
        print(f"(the run could not be marked as failed: {reason})", file=sys.stderr)
    return USAGE_ERROR
