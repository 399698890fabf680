"""How the stages after a range test begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lrrt_stage.settings import setting
from mlflow_project.handoff import Handoff, load_handoff
from pipeline import Runtime, Task, Workbench

__all__ = ["HandoffOptions", "open_handoff"]


@dataclass(frozen=True)
class HandoffOptions:
    """Which range test is followed."""

    lrrt_run_id: str = setting(
        "latest", "Range-test run; latest: the newest finished one of the experiment."
    )
    allow_mismatch: bool = setting(False, "Go on although the task differs from the range test's.")


def open_handoff(
    options: HandoffOptions, runtime: Runtime, changes: dict[str, Any], bench: Workbench | None
) -> tuple[Handoff, Workbench]:
    """Return a checked hand-off and a workbench for its task with ``changes``.

    Raises
    ------
    LRRTError
        If the task or its data differ from the range test's, unless that is allowed.
    """
    handoff = load_handoff(options.lrrt_run_id)
    task: Task = replace(handoff.task, **changes)
    if not options.allow_mismatch:
        # First the fields, which cost nothing; then the data's content.
        handoff.check(task)
    bench = bench or Workbench(task, runtime)
    if not options.allow_mismatch:
        handoff.check(task, bench.data.digest)
    return handoff, bench
