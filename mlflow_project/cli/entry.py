"""The console script ``lrrt-stage``: runs a command, and turns how it ended into an exit code."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from _thread import interrupt_main
from typing import NoReturn

from mlflow_project.cli.lines import INTERRUPTED
from mlflow_project.cli.startup import begin_imports, begin_work, interrupt
from pipeline.ranks.options import launched_rank, launched_size

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The exit code is 0, 2 for input that cannot be used, 4 if the work is done but the store has not
    taken all of it, and 130 when interrupted.
    """
    given = sys.argv[1:] if arguments is None else arguments
    _prepare()
    if launched_rank() > 0:  # rank 0 is the one that runs the command
        from pipeline.ranks.launch import follow

        follow(given)
    begin_imports()
    from mlflow_project.cli.failures import run_command

    sys.unraisablehook = _interrupt_again
    try:
        code = run_command(given)
        if code == 0 and launched_size() > 1:
            from pipeline.ranks.launch import dismiss

            dismiss()
    except KeyboardInterrupt:  # once more, while the first one was being told
        code = INTERRUPTED
    finally:
        begin_work()  # if it ended before
    if arguments is None:
        # All is done: what Python does at its end is not worth another exit code, and looking for
        # garbage once more would take a second.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()
    sys.exit(code)


def _prepare() -> None:
    """Set what libraries read when they are imported."""
    # cuBLAS reads this once, when it starts: with it, results repeat bit for bit on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # DDP warns of what costs it a little time.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    # Libraries announce changes of other libraries, which users of this command cannot act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # joblib warns when an interrupted study abandons its running tests, which is intended.
    abandoned = r"\d+ tasks (which were still|have been) "
    warnings.filterwarnings("ignore", abandoned, UserWarning, "joblib")
    # MLflow prints the traceback of a database's error, which the command says in a line.
    logging.getLogger("mlflow.store.db.utils").addFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return record.exc_info is None


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Repeat an interruption that came inside a finalizer or a weak reference's callback.

    Python drops whatever these raise: the command would go on as if nobody had stopped it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (in_main and isinstance(ignored.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(ignored)
        return
    signal.signal(signal.SIGTERM, interrupt)
    # Not at once: what is raised before the callback has returned would be dropped as well.
    threading.Timer(0.1, interrupt_main, [signal.SIGTERM]).start()
