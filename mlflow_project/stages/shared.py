"""What stages share: how those after a range test begin, and how runs and tasks are named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRange
from lrrt_stage.settings import Options, hide_passwords, setting
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.tracking import tags
from mlflow_project.tracking.runs import log_dataset, log_range, name_run
from pipeline import Narrowing, PreparedTask, Runtime, Task
from pipeline.data.datasets import is_dataset_factory

__all__ = ["HandoffOptions", "open_handoff", "run_name", "short_name", "task_words"]


@dataclass(frozen=True)
class HandoffOptions(Options):
    """The range test that a stage continues from."""

    lrrt_run_id: str = setting(
        "latest", "Range-test run; latest: the newest finished one of the experiment."
    )
    allow_mismatch: bool = setting(
        False, "Continue although the task differs from the range test's."
    )


def open_handoff(
    run: Run,
    options: HandoffOptions,
    runtime: Runtime,
    narrowing: Narrowing,
    changes: dict[str, Any] | None,
    prepared: PreparedTask | None,
) -> tuple[Handoff, PreparedTask, LRRange]:
    """Return a checked hand-off, its task made ready to run, and the narrowed range.

    ``changes`` are fields of the task that differ from the range test's. The run gets its name,
    and what all stages after a range test log.
    """
    handoff = load_handoff(options.lrrt_run_id)
    task: Task = replace(handoff.task, **changes or {})
    if not options.allow_mismatch:
        # The fields first, because they cost nothing; then the content of the data.
        handoff.check(task)
    prepared = prepared or PreparedTask(task, runtime)
    if not options.allow_mismatch:
        handoff.check(task, prepared.data.digest)
    elif differences := handoff.differences(task, prepared.data.digest):
        mlflow.set_tag(tags.MISMATCH, hide_passwords("; ".join(differences)))
    narrowed = narrowing(handoff.range)
    name_run(run, run_name(task))
    mlflow.set_tags({tags.SOURCE: handoff.run_id, tags.WEIGHTS: handoff.weights_sha256})
    log_dataset(prepared)
    for name, lr_range in (("suggested", handoff.range), ("narrowed", narrowed)):
        log_range(name, lr_range)
    return handoff, prepared, narrowed


def short_name(task: Task) -> str:
    """Return dataset and model, without folders: part of a run's name."""
    own = is_dataset_factory(task.dataset)
    return f"{task.dataset if own else task.dataset.partition(':')[0]} {task.model}"


def run_name(task: Task) -> str:
    """Return what follows the stage in a run's name."""
    return f"{short_name(task)} batch {task.batch_size} seed {task.seed}"


def task_words(task: Task) -> str:
    """Return how a description names a task."""
    dataset, _, model = short_name(task).rpartition(" ")
    return f"`{model}` on {dataset} ({task.optimizer}, batches of {task.batch_size})"
