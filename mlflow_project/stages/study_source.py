"""A finished study as the source of range tests for a different kind of study."""

from __future__ import annotations

import re
from dataclasses import fields, replace

from mlflow.entities import Run

from lrrt_stage.settings import require
from mlflow_project.handoff.artifacts import find_run, read_json
from mlflow_project.handoff.publishing import TASK, TASK_TAG
from mlflow_project.stages.job_runs import children, read_result
from mlflow_project.tracking.runs import find_runs
from mlflow_project.tracking.tags import STAGE_TAG
from pipeline import PreparedTask, RangeTestPlan, Task
from pipeline.jobs.jobs import RangeTestResult

__all__ = ["KIND_TAG", "finished_tests"]

KIND_TAG = "lrrt.study"
KINDS_OF_SEEDS = ("initializations", "data-order", "mismatch")


def finished_tests(
    study_id: str, prepared: PreparedTask, plan: RangeTestPlan
) -> tuple[str, list[RangeTestResult]]:
    """Return the id of a finished study of the task of ``prepared``, and its tests by name.

    ``latest`` is the experiment's newest finished one that compares seeds. Seeds may differ from
    the task's, and so may whatever the study itself varied. The curves are read with the rule and
    the average of ``plan``.

    Raises
    ------
    LRRTError
        If there is no such study, it has no finished range test, or it ran on a different task,
        different data, or a different ramp.
    """
    task = prepared.task
    study = find_run(study_id, "study")
    if study_id == "latest":
        finished = find_runs({STAGE_TAG: "study"}, finished=True)
        study = next((found for found in finished if _compares_seeds(found)), study)
    runs = _tests(study)
    results = [read_result(run) for run in runs]
    tests = [_read_with(plan, test) for test in results if isinstance(test, RangeTestResult)]
    require(
        bool(tests), f"study {study.info.run_id} has no finished range test: name a different study"
    )
    theirs = [test.job.task for test in tests]
    varied = [
        field.name
        for field in fields(Task)
        if field.name in ("seed", "data_seed")
        or any(getattr(other, field.name) != getattr(theirs[0], field.name) for other in theirs)
    ]
    ours = {name: getattr(task, name) for name in varied}
    differences = task.differences(replace(theirs[0], **ours))
    require(
        not differences,
        f"study {study.info.run_id} ran on a different task: {'; '.join(differences)}: give the "
        "options of its task, or name a different study",
    )
    ramp = tests[0].job.plan.ramp
    require(
        ramp == plan.ramp,
        f"study {study.info.run_id} has a different ramp, {ramp}: give its options, or name a "
        "different study",
    )
    require(
        read_json(runs[0], TASK, TASK_TAG)["data_sha256"] == prepared.data.digest,
        f"the content of dataset {task.dataset!r} is not what study {study.info.run_id} ran on: "
        "run a study on its present content",
    )
    return study.info.run_id, sorted(tests, key=lambda test: _numbered(test.job.name))


def _read_with(plan: RangeTestPlan, test: RangeTestResult) -> RangeTestResult:
    """Return a test read with the rule and the average of ``plan``."""
    job = replace(
        test.job,
        plan=replace(test.job.plan, smoothing=plan.smoothing, suggestion=plan.suggestion),
    )
    reading = test.reading.with_rule(plan.suggestion.rule)
    if reading.smoothing != plan.smoothing:
        reading = plan.read(test.curve)
    return replace(test, job=job, reading=reading)


def _compares_seeds(study: Run) -> bool:
    return study.data.tags.get(KIND_TAG) in KINDS_OF_SEEDS and len(_tests(study)) >= 2


def _tests(study: Run) -> list[Run]:
    return [run for run in children(study) if run.data.tags[STAGE_TAG] == "test"]


def _numbered(name: str) -> list[str | int]:
    """Return a sort key that puts test 2 before test 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
