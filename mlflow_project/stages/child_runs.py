"""A study's jobs as child runs: how one is logged, and read back."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRange, LRRTError, confidence_all, suggest_all
from lrrt_stage.settings import require
from mlflow_project.handoff.artifacts import find_run, read_curve, run_file
from mlflow_project.handoff.fingerprints import FINGERPRINT_TAG, fingerprint
from mlflow_project.handoff.publishing import TASK, publish
from mlflow_project.tracking.params import log_params
from mlflow_project.tracking.runs import (
    log_curve,
    log_scalars,
    log_suggestions,
    log_training,
    name_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.tags import STAGE_TAG
from pipeline import PreparedTask, RangeTestPlan, Task, TrainOptions
from pipeline.jobs.jobs import Job, RangeTestJob, RangeTestResult, TrainingJob, TrainingResult
from pipeline.jobs.pool import JobResult
from pipeline.training.loop import Epoch

__all__ = ["children", "finished_tests", "job_fingerprints", "log_outcome", "read_result"]

JOB = "job.json"
KIND_TAG = "lrrt.study"


def job_fingerprints(prepared: PreparedTask, jobs: Sequence[Job]) -> list[str]:
    """Return what marks jobs that would have the same result, under the same name.

    ``prepared`` is that of the study, whose data and device all its jobs share, so that what they
    have in common is looked at once.
    """
    # On a CPU, jobs compute with one thread each.
    shared = fingerprint("job", prepared, threads=1)
    contents = [[shared, type(job).__name__, asdict(job)] for job in jobs]
    return [
        hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for content in contents
    ]


def log_outcome(prepared: PreparedTask, outcome: JobResult, mark: str) -> None:
    """Log a job's outcome as a child run of the active one."""
    job, result = outcome.job, outcome.result
    try:
        with stage_run("test" if isinstance(job, RangeTestJob) else "training") as run:
            name_run(run, job.name)
            seeds = {"seed": job.task.seed, "data_seed": job.task.data_seed}
            log_params(run, {"batch_size": job.task.batch_size, **seeds, **job.labels})
            if result is None:
                raise LRRTError(outcome.error)
            with staged_files(run) as folder:
                if isinstance(result, RangeTestResult):
                    _log_test(run, prepared, result, folder)
                else:
                    _log_training(run, result, folder)
            mlflow.set_tag(FINGERPRINT_TAG, mark)
    except LRRTError:
        if result is not None:
            raise


def _log_test(run: Run, prepared: PreparedTask, test: RangeTestResult, folder: Path) -> None:
    plan = test.job.plan
    sure = confidence_all(test.curve, plan.smoothing)
    tags = publish(
        folder,
        prepared.sibling(test.job.task),
        plan,
        test.weights,
        curve=test.curve,
        answers=test.answers,
        sure=sure,
        rule=test.rule,
        page=False,
    )
    mlflow.set_tags(tags)
    log_curve(run, test.curve, plan.smoothing)
    log_suggestions(run, test.curve, test.answers, sure, test.rule)
    log_scalars(run, {"seconds": test.seconds})
    result = {"stop": test.curve.stop, "epochs": test.curve.epochs, "seconds": test.seconds}
    _write_job(folder, test.job, result)


def _log_training(run: Run, training: TrainingResult, folder: Path) -> None:
    log_training(run, training)
    lr_range = training.job.lr_range
    log_scalars(run, {"trained_lr_min": lr_range.min, "trained_lr_max": lr_range.max})
    result = asdict(training)
    del result["job"]
    _write_job(folder, training.job, result)


def _write_job(folder: Path, job: Job, result: dict[str, Any]) -> None:
    content = {"job": asdict(job), "result": result}
    # Infinity and NaN stay as they are: Python reads them back.
    (folder / JOB).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_result(
    run: Run, read_with: RangeTestPlan | None = None
) -> RangeTestResult | TrainingResult:
    """Return the result that :func:`log_outcome` logged; a test's without its weights.

    A curve is read with the rule and the average of its own plan, or of ``read_with``.
    """
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        content = json.loads(run_file(run, JOB, folder).read_text(encoding="utf-8"))
        job, result = content["job"], content["result"]
        job["task"] = Task(**job["task"])
        if "plan" not in job:
            job["lr_range"] = LRRange(**job["lr_range"])
            job["options"] = TrainOptions(**job["options"])
            result["epochs"] = [Epoch(**epoch) for epoch in result["epochs"]]
            return TrainingResult(TrainingJob(**job), **result)
        plan = RangeTestPlan.from_dict(job["plan"])
        if read_with is not None:
            plan = replace(plan, smoothing=read_with.smoothing, suggestion=read_with.suggestion)
        job["plan"] = plan
        curve = read_curve(run, folder, stop=result["stop"], epochs=result["epochs"])
    answers = suggest_all(curve, plan.smoothing)
    return RangeTestResult(RangeTestJob(**job), curve, answers, result["seconds"])


def children(study: Run) -> list[Run]:
    """Return the finished child runs of a study, oldest first."""
    return list(
        mlflow.MlflowClient().search_runs(
            [study.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{study.info.run_id}' and attributes.status = 'FINISHED'",
            max_results=10_000,
            order_by=["attributes.start_time ASC"],
        )
    )


def finished_tests(
    study_id: str, prepared: PreparedTask, plan: RangeTestPlan
) -> tuple[str, list[RangeTestResult]]:
    """Return the id of a finished study of the prepared's task, and its range tests by name.

    ``latest`` is the experiment's newest finished one that compares seeds. Seeds may differ from
    the task's, and so may whatever the study itself varied. The curves are read with the rule and
    the average of ``plan``.

    Raises
    ------
    LRRTError
        If there is no such study, it has no finished range test, or is of another task, other
        data or another ramp.
    """
    task = prepared.task
    study = find_run(study_id, "study")
    if study_id == "latest":
        finished = mlflow.MlflowClient().search_runs(
            [study.info.experiment_id],
            f"tags.`{STAGE_TAG}` = 'study' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        study = next((each for each in finished if _compares_seeds(each)), study)
    runs = _tests(study)
    found = [read_result(each, plan) for each in runs]
    tests = [each for each in found if isinstance(each, RangeTestResult)]
    require(bool(tests), f"study {study.info.run_id} has no finished range test: name another")
    theirs = [each.job.task for each in tests]
    varied = [
        field.name
        for field in fields(Task)
        if field.name in ("seed", "data_seed")
        or any(getattr(each, field.name) != getattr(theirs[0], field.name) for each in theirs)
    ]
    ours = {name: getattr(task, name) for name in varied}
    differences = task.differences(replace(theirs[0], **ours))
    require(
        not differences,
        f"study {study.info.run_id} is of another task: {'; '.join(differences)}: give the options "
        "of its task, or name another study",
    )
    ramp = tests[0].job.plan.ramp
    require(
        ramp == plan.ramp,
        f"study {study.info.run_id} has another ramp, {ramp}: give its options, or name another",
    )
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        published = json.loads(run_file(runs[0], TASK, folder).read_text(encoding="utf-8"))
    require(
        published["data_sha256"] == prepared.data.digest,
        f"the content of dataset {task.dataset!r} is not what study {study.info.run_id} ran on: "
        "run a study on it as it is now",
    )
    return study.info.run_id, sorted(tests, key=lambda each: _numbered(each.job.name))


def _compares_seeds(study: Run) -> bool:
    kinds = ("initializations", "data-order", "mismatch")
    return study.data.tags.get(KIND_TAG) in kinds and len(_tests(study)) >= 2


def _tests(study: Run) -> list[Run]:
    return [each for each in children(study) if each.data.tags[STAGE_TAG] == "test"]


def _numbered(name: str) -> list[str | int]:
    """Return a sort key that puts test 2 before test 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
