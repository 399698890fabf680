"""Jobs as child runs: how one is logged, and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRange, LRRTError
from mlflow_project.handoff.artifacts import load_artifact
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import read_handoff
from mlflow_project.handoff.publishing import publish_inputs, publish_reading
from mlflow_project.tracking.params import log_params
from mlflow_project.tracking.runs import (
    find_runs,
    log_curve,
    log_range,
    log_reading,
    log_scalars,
    log_training,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.tags import FINGERPRINT_TAG
from pipeline import PreparedTask, Task, TrainOptions
from pipeline.jobs.jobs import Job, RangeTestJob, RangeTestResult, TrainingJob, TrainingResult
from pipeline.jobs.pool import JobResult
from pipeline.training.loop import Epoch

__all__ = ["children", "job_fingerprints", "log_outcome", "read_result"]

JOB = "job.json"


def job_fingerprints(prepared: PreparedTask, jobs: Sequence[Job]) -> list[str]:
    """Return the fingerprints of jobs: equal ones have the same name and the same result.

    ``prepared`` is that of the study, whose data and device all jobs share, so that what they have
    in common is read once.
    """
    # On a CPU, jobs compute with one thread each.
    shared = fingerprint("job", prepared, threads=1)
    contents = [[shared, type(job).__name__, asdict(job)] for job in jobs]
    return [
        hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for content in contents
    ]


def log_outcome(prepared: PreparedTask, outcome: JobResult, job_fingerprint: str) -> None:
    """Log a job's outcome as a child run of the active one; a failed job is a failed run."""
    job, result = outcome.job, outcome.result
    try:
        with stage_run("test" if isinstance(job, RangeTestJob) else "training", job.name) as run:
            seeds = {"seed": job.task.seed, "data_seed": job.task.data_seed}
            log_params(run, {"batch_size": job.task.batch_size, **seeds, **job.labels})
            if result is None:
                raise LRRTError(outcome.error)
            with staged_files(run) as folder:
                if isinstance(result, RangeTestResult):
                    _log_test(run, prepared, result, folder)
                else:
                    _log_training(run, result, folder)
            mlflow.set_tag(FINGERPRINT_TAG, job_fingerprint)
    except LRRTError:
        if result is not None:
            raise


def _log_test(run: Run, prepared: PreparedTask, test: RangeTestResult, folder: Path) -> None:
    plan, curve = test.job.plan, test.curve
    inputs = publish_inputs(folder, prepared.sibling(test.job.task), plan, test.weights)
    mlflow.set_tags(inputs | publish_reading(folder, test.reading))
    log_curve(run, curve, plan.smoothing)
    log_reading(run, test.reading)
    log_scalars(run, {"seconds": test.seconds})
    result = {"stop": curve.stop, "epochs": curve.epochs, "seconds": test.seconds}
    _write_job(folder, test.job, result)


def _log_training(run: Run, training: TrainingResult, folder: Path) -> None:
    log_training(run, training)
    log_range(run, "trained", training.job.lr_range)
    result = asdict(training)
    del result["job"]
    _write_job(folder, training.job, result)


def _write_job(folder: Path, job: Job, result: dict[str, Any]) -> None:
    content = {"job": asdict(job), "result": result}
    # Infinity and NaN stay as they are: Python reads them back.
    (folder / JOB).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_result(run: Run) -> RangeTestResult | TrainingResult:
    """Return the result that :func:`log_outcome` logged; a test's without its weights."""
    content = load_artifact(run, JOB, lambda path: json.loads(path.read_text(encoding="utf-8")))
    job, result = content["job"], content["result"]
    if "plan" in job:
        published = read_handoff(run)
        test = RangeTestJob(job["name"], published.task, published.plan, job["labels"])
        return RangeTestResult(test, published.reading, result["seconds"], published.device)
    job["task"] = Task(**job["task"])
    job["lr_range"] = LRRange(**job["lr_range"])
    job["options"] = TrainOptions(**job["options"])
    result["epochs"] = [Epoch(**epoch) for epoch in result["epochs"]]
    return TrainingResult(TrainingJob(**job), **result)


def children(run: Run) -> list[Run]:
    """Return the finished child runs of a run, oldest first."""
    parent = {"mlflow.parentRunId": run.info.run_id}
    return find_runs(parent, finished=True, experiment=run.info.experiment_id)[::-1]
