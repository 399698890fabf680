"""What stages share: how those after a range test begin, and how runs and tasks are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lrrt_stage import LRRange
from lrrt_stage.settings import hide_passwords
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.handoff.signature import check_key
from mlflow_project.stages.options import HandoffOptions
from mlflow_project.tracking import tags
from mlflow_project.tracking.record import active_record
from mlflow_project.tracking.runs import log_prepared, log_range, name_run
from pipeline import Narrowing, PreparedTask, Runtime, Task

__all__ = [
    "open_handoff",
    "run_name",
    "task_words",
    "validation_words",
]


def open_handoff(
    options: HandoffOptions,
    runtime: Runtime,
    narrowing: Narrowing,
    changes: dict[str, Any] | None,
    prepared: PreparedTask | None,
) -> tuple[Handoff, PreparedTask, LRRange]:
    """Return a checked hand-off, its task made ready to run, and the range to train in.

    ``changes`` are fields of the task that differ from the range test's. The run gets its name,
    and what all stages after a range test log.
    """
    check_key()
    handoff = load_handoff(
        options.lrrt_run_id, trust=options.trust, require_signature=options.require_signature
    )
    task: Task = prepared.task if prepared else replace(handoff.recipe, **changes or {})
    if not options.allow_mismatch:
        # The fields first, because they cost nothing; then the content of the data.
        handoff.check(task)
    prepared = prepared or PreparedTask(task, runtime)
    if not options.allow_mismatch:
        handoff.check(task, prepared.data_digest)
    elif differences := handoff.differences(task, prepared.data_digest):
        mismatch = hide_passwords("; ".join(differences))
        active_record().set_tags({tags.MISMATCH: mismatch})
    narrowed = narrowing(handoff.range)
    name_run(run_name(task))
    active_record().set_tags(handoff.lineage)
    log_range("suggested", handoff.range)
    log_range("narrowed", narrowed)
    log_prepared(prepared)
    return handoff, prepared, narrowed


def run_name(task: Task) -> str:
    """Return what follows the stage in a run's name."""
    batch = "" if task.setup else f" batch {task.batch_size}"
    return f"{task.short_name}{batch} seed {task.seed}"


def task_words(task: Task) -> str:
    """Return how a description names a task."""
    if task.setup is not None:
        return f"`{task.setup}`"
    words = f"`{task.model}` on {task.data_name}"
    return f"{words} ({task.optimizer}, batches of {task.batch_size})"


def validation_words(metrics: Mapping[str, float]) -> str:
    """Return the validation of a training as a sentence; empty without one."""
    validated = {k.removeprefix("val_"): v for k, v in metrics.items() if k.startswith("val_")}
    words = [f"{name} **{value:.4g}**" for name, value in sorted(validated.items())]
    return f"Validation after the last epoch: {', '.join(words)}." if words else ""
