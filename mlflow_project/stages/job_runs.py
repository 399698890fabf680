"""Jobs as child runs: they run side by side, and finished jobs of interrupted runs are reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRange, LRRTError
from mlflow_project.handoff.artifacts import load_artifact, write_json
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import read_handoff
from mlflow_project.handoff.publishing import publish_inputs, publish_reading
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_params
from mlflow_project.tracking.runs import (
    find_runs,
    log_curve,
    log_range,
    log_reading,
    log_training,
    stage_run,
    staged_files,
)
from pipeline import PreparedTask, Runtime, Task, TrainOptions
from pipeline.jobs.jobs import Job, RangeTestJob, RangeTestResult, TrainingJob, TrainingResult
from pipeline.jobs.pool import JobResult, run_jobs
from pipeline.training.loop import Epoch

__all__ = ["JobRuns", "children", "finished_jobs", "interrupted", "read_result", "same_runs"]

JOB = "job.json"


class JobRuns:
    """Runs jobs as child runs of ``run``, and reuses those that an earlier run finished.

    ``finished`` holds the finished runs by fingerprint. ``outcomes`` are all outcomes so far, also
    after an interruption.
    """

    def __init__(
        self,
        run: Run,
        prepared: PreparedTask,
        runtime: Runtime,
        title: str,
        workers: int | None,
        finished: Mapping[str, Run],
    ) -> None:
        self.run, self.prepared, self.runtime = run, prepared, runtime
        self.title, self.workers, self.finished = title, workers, finished
        self.outcomes: list[JobResult] = []

    def __call__(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Return the outcomes of ``jobs`` in their order."""
        fingerprints = _job_fingerprints(self.prepared, jobs)
        done: dict[int, JobResult] = {}
        for index, job in enumerate(jobs):
            reused = self.finished.get(fingerprints[index])
            if reused is not None:
                mlflow.MlflowClient().set_tag(
                    reused.info.run_id, "mlflow.parentRunId", self.run.info.run_id
                )
                done[index] = JobResult(job, read_result(reused))
        if done:
            console.note(f"{len(done)} of {len(jobs)} are finished already and reused")
        missing = [index for index in range(len(jobs)) if index not in done]
        with console.progress(self.title) as progress:
            progress(len(done), len(jobs))

            def on_done(place: int, outcome: JobResult) -> None:
                index = missing[place]
                _log_outcome(self.prepared, outcome, fingerprints[index])
                done[index] = outcome
                progress(len(done), len(jobs))
                if outcome.error:
                    console.note(f"{outcome.job.name} failed: {outcome.error}")

            try:
                run_jobs([jobs[index] for index in missing], self.runtime, self.workers, on_done)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(done)} of {len(jobs)} are finished and kept; the same command continues "
                    "with the others"
                ) from None
            finally:
                # An interrupted study writes them into its tables as well.
                outcomes = [done[index] for index in sorted(done)]
                self.outcomes += outcomes
        return outcomes


def same_runs(fingerprint: str, stage: str) -> list[Run]:
    """Return the experiment's runs of ``stage`` with this fingerprint."""
    return find_runs({tags.FINGERPRINT: fingerprint, tags.STAGE: stage})


def interrupted(runs: Sequence[Run]) -> list[Run]:
    """Return those of ``runs`` that ended before they were finished."""
    return [run for run in runs if run.info.status in ("FAILED", "KILLED")]


def finished_jobs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the finished child runs of ``runs`` by fingerprint."""
    return {
        child.data.tags[tags.FINGERPRINT]: child
        for run in runs
        for child in children(run)
        if tags.FINGERPRINT in child.data.tags
    }


def _job_fingerprints(prepared: PreparedTask, jobs: Sequence[Job]) -> list[str]:
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


def _log_outcome(prepared: PreparedTask, outcome: JobResult, job_fingerprint: str) -> None:
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
            mlflow.set_tag(tags.FINGERPRINT, job_fingerprint)
    except LRRTError:
        if result is not None:
            raise


def _log_test(run: Run, prepared: PreparedTask, test: RangeTestResult, folder: Path) -> None:
    plan, curve = test.job.plan, test.curve
    inputs = publish_inputs(folder, test.job.task, prepared, plan, test.weights)
    mlflow.set_tags(inputs | publish_reading(folder, test.reading))
    log_curve(run, curve, plan.smoothing)
    log_reading(test.reading)
    mlflow.log_metrics({"seconds": test.seconds})
    result = {"stop": curve.stop, "epochs": curve.epochs, "seconds": test.seconds}
    _write_job(folder, test.job, result)


def _log_training(run: Run, training: TrainingResult, folder: Path) -> None:
    log_training(run, training)
    log_range("trained", training.job.lr_range)
    result = asdict(training)
    del result["job"]
    _write_job(folder, training.job, result)


def _write_job(folder: Path, job: Job, result: dict[str, Any]) -> None:
    # Infinity and NaN stay as they are: Python reads them back.
    write_json(folder / JOB, {"job": asdict(job), "result": result})


def read_result(run: Run) -> RangeTestResult | TrainingResult:
    """Return the result that :func:`_log_outcome` logged; a test's without its weights."""
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
