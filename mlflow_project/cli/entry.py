"""The console script ``lrrt-stage``: runs a command, and turns how it ended into an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from _thread import interrupt_main
from collections.abc import Sequence
from typing import NoReturn

# cuBLAS reads this once, when it starts: with it, results repeat bit for bit on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Libraries announce changes of other libraries, which users of this command cannot act on.
warnings.filterwarnings("ignore", category=FutureWarning)
# joblib warns when an interrupted study abandons its running tests, which is intended.
warnings.filterwarnings("ignore", r"\d+ tasks (which were still|have been) ", UserWarning, "joblib")

import optuna  # noqa: E402
import rich_click as click  # noqa: E402

from lrrt_stage import LRRTError  # noqa: E402
from lrrt_stage.errors import first_line  # noqa: E402
from lrrt_stage.settings import hide_passwords  # noqa: E402
from mlflow_project.cli.commands import commands  # noqa: E402
from mlflow_project.cli.lines import INTERRUPTED, error_line, interrupted_line  # noqa: E402
from mlflow_project.tracking.runs import fail_project_run  # noqa: E402

__all__ = ["main"]

USAGE_ERROR = 2


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0, 2 for input that cannot be used, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_again
    # As a warning it would print the traceback of an error that ends a trial.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    arguments = sys.argv[1:] if arguments is None else arguments
    stage = next(iter(arguments), "")
    try:
        code = commands.main(arguments, standalone_mode=False)
    except LRRTError as error:
        code = _fail(stage, str(error), arguments)
    except click.ClickException as error:
        code = _fail(stage, error.format_message(), arguments)
    except (KeyboardInterrupt, click.Abort) as interrupt:
        # click raises an Abort of its own while it handles what a stage raised.
        print(interrupted_line(interrupt.__context__), file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def _fail(stage: str, reason: str, arguments: Sequence[str]) -> int:
    given = [*arguments, *(text for name, text in os.environ.items() if name.startswith("MLFLOW_"))]
    line = error_line(hide_passwords(reason), given)
    print(f"Error: {line}", file=sys.stderr)
    try:
        fail_project_run(stage, line)
    except Exception as error:  # the store itself may be what is wrong
        reason = error_line(first_line(error), given)
        print(f"(the run could not be marked as failed: {reason})", file=sys.stderr)
    return USAGE_ERROR


def _interrupt(signum: int, frame: object) -> None:
    """Treat the first SIGTERM as Ctrl-C, and let the clean-up that follows finish."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("terminated")


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Repeat an interruption that came inside a finalizer or a weak reference's callback.

    Python drops whatever these raise: the command would go on as if nobody had stopped it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (in_main and isinstance(ignored.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(ignored)
        return
    signal.signal(signal.SIGTERM, _interrupt)
    # Not at once: what is raised before the callback has returned would be dropped as well.
    threading.Timer(0.1, interrupt_main, [signal.SIGTERM]).start()
