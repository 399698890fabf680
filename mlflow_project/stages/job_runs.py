"""Jobs as child runs: they run side by side, and finished jobs of interrupted runs are reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRTError
from lrrt_stage.settings import masked, require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import load_artifact, load_json, write_json
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.handoff import read_handoff
from mlflow_project.handoff.publishing import publish_inputs, publish_reading
from mlflow_project.handoff.signature import SIGNATURE, check_signature, sign_run
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_params
from mlflow_project.tracking.record import RunRecord
from mlflow_project.tracking.runs import (
    find_runs,
    log_curve,
    log_range,
    log_reading,
    log_training,
    stage_run,
)
from mlflow_project.tracking.store import ask
from pipeline import PreparedTask
from pipeline.jobs.jobs import (
    FailedJob,
    Job,
    JobResult,
    RangeTestJob,
    RangeTestResult,
    TrainingResult,
)
from pipeline.jobs.options import PoolOptions
from pipeline.jobs.pool import run_jobs
from pipeline.training.loop import Epoch, TrainingHistory

__all__ = ["JobRuns", "finished_jobs", "same_runs"]

JOB, JOB_TAG = "job.json", "lrrt.job_sha256"


@dataclass
class JobRuns:
    """Runs jobs as child runs of ``run``, and reuses those that an earlier run finished."""

    run: RunRecord
    prepared: PreparedTask
    title: str
    pool: PoolOptions
    finished: Mapping[str, Run]
    """The finished runs of earlier jobs, by fingerprint."""
    results: list[JobResult] = field(default_factory=list)
    """All results so far, also after an interruption."""

    def __call__(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Return the results of ``jobs`` in their order.

        A task that cannot be run is refused before any job starts.
        """
        self._check_tasks(jobs)
        fingerprint_of = _fingerprints(self.prepared)
        fingerprints = [fingerprint_of(job) for job in jobs]
        named = dict(zip(fingerprints, jobs, strict=True))
        done = {
            each: self._reuse(job, self.finished[each])
            for each, job in named.items()
            if each in self.finished
        }
        if done:
            console.note(f"{len(done)} of {len(jobs)} are finished already and reused")
        missing = [job for job, each in zip(jobs, fingerprints, strict=True) if each not in done]
        with console.progress(self.title) as progress:
            progress(len(done), len(jobs))

            def on_done(result: JobResult) -> None:
                each = fingerprint_of(result.job)
                _log_result(self.prepared, result, each)
                done[each] = result
                progress(len(done), len(jobs))
                if isinstance(result, FailedJob):
                    console.note(f"{result.job.name} failed: {result.reason}")

            try:
                run_jobs(
                    missing,
                    self.prepared.runtime,
                    self.pool.workers,
                    on_done,
                    self.prepared,
                    backend=self.pool.backend,
                    gpus_per_test=self.pool.gpus_per_test,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(done)} of {len(jobs)} are finished and kept; the same command continues "
                    "with the others"
                ) from None
            finally:
                # An interrupted study writes them into its tables as well.
                results = [done[each] for each in fingerprints if each in done]
                self.results += results
        _note_equal_weights(results)
        return results

    def _reuse(self, job: Job, run: Run) -> JobResult:
        """Make the run of a job that is finished a child of this one, and return its result."""
        client, parent = mlflow.MlflowClient(), self.run.run_id
        ask(lambda: client.set_tag(run.info.run_id, "mlflow.parentRunId", parent))
        check_signature(run)
        if isinstance(job, RangeTestJob):
            # The job is the one that was asked for: a run does not choose what is run.
            return RangeTestResult(job, read_handoff(run).reading)
        return TrainingResult(job, load_artifact(run, JOB, _load_history, _job_tag(run)))

    def _check_tasks(self, jobs: Sequence[Job]) -> None:
        """Prepare every task that differs from that of the run in more than its seeds."""
        task = self.prepared.task
        checked = [task]
        for job in jobs:
            changed = replace(job.task, seed=task.seed, data_seed=task.data_seed)
            if changed not in checked:
                try:
                    PreparedTask(changed, self.prepared.runtime, self.prepared.data)
                except LRRTError as error:
                    raise LRRTError(f"{job.name}: {error}, or leave this test out") from error
                checked.append(changed)


def _note_equal_weights(results: Sequence[JobResult]) -> None:
    """Say so where tests of several seeds had the same weights, as those of a setup may have."""
    new = [each for each in results if isinstance(each, RangeTestResult) and each.weights]
    seeds = {each.job.task.seed for each in new}
    if len(seeds) > 1 and len({weights.digest(each.weights) for each in new}) == 1:
        console.note(
            f"{len(seeds)} seeds gave the same initial weights, since the setup draws none: only "
            "the order of the data differs between the tests"
        )


def same_runs(fingerprint: str, stage: str, *status: str) -> list[Run]:
    """Return the experiment's runs of ``stage`` with this fingerprint that have such a status."""
    same = find_runs({tags.FINGERPRINT: fingerprint, tags.STAGE: stage})
    return [run for run in same if run.info.status in status]


def finished_jobs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the finished child runs of ``runs`` by fingerprint."""
    return {
        child.data.tags[tags.FINGERPRINT]: child
        for run in runs
        for child in _children(run)
        if tags.FINGERPRINT in child.data.tags
    }


def _fingerprints(prepared: PreparedTask) -> Callable[[Job], str]:
    """Return a function to the fingerprint of a job on the data and device of ``prepared``.

    Jobs with equal fingerprints have the same name and the same result.
    """
    # Read once for all jobs. On a CPU they compute with one thread each.
    shared = fingerprint("job", prepared, threads=1)

    def of_job(job: Job) -> str:
        content = [shared, type(job).__name__, asdict(job)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    return of_job


def _log_result(prepared: PreparedTask, result: JobResult, job_fingerprint: str) -> None:
    """Log a result as a child run of the active one; a failed job is a failed run."""
    job = result.job
    stage = "test" if isinstance(job, RangeTestJob) else "training"
    failed = isinstance(result, FailedJob)
    with (
        suppress(LRRTError) if failed else nullcontext(),
        stage_run(stage, job.name) as run,
        run.bundle(),
    ):
        batch = {} if job.task.setup else {"batch_size": job.task.batch_size}
        seeds = {"seed": job.task.seed, "data_seed": job.task.data_seed}
        log_params({**batch, **seeds, **job.labels})
        if isinstance(result, FailedJob):
            raise LRRTError(result.reason)
        content: dict[str, Any] = {"job": asdict(job)}
        if isinstance(result, RangeTestResult):
            _log_test(prepared, result, run.files)
        else:
            log_training(result.history)
            log_range("trained", result.job.lr_range)
            # Infinity and NaN, which are no metrics, stay as they are in the file.
            content["result"] = asdict(result.history)
        digest = write_json(run.files / JOB, masked(content))
        run.set_tags({JOB_TAG: digest, tags.FINGERPRINT: job_fingerprint})
        sign_run()


def _log_test(prepared: PreparedTask, test: RangeTestResult, folder: Path) -> None:
    plan = test.job.plan
    digest, device = prepared.data_digest, str(prepared.device)
    publish_inputs(folder, test.job.task, plan, test.weights, digest, device)
    publish_reading(folder, test.reading)
    log_curve(test.curve, plan.smoothing)
    log_reading(test.reading)


def _job_tag(run: Run) -> str | None:
    """Return the tag with the digest of the job's file; earlier versions published none."""
    return JOB_TAG if JOB_TAG in run.data.tags or SIGNATURE in run.data.tags else None


def _load_history(path: Path) -> TrainingHistory:
    # Infinity and NaN are losses of a training that diverged.
    history = load_json(path, finite=False)["result"]
    epochs = [Epoch(**epoch) for epoch in history["epochs"]]
    validated = [each.val_loss for each in epochs if each.val_loss is not None]
    measured = [list(each.metrics.values()) for each in epochs]
    numbers = [*history["lr"], *history["train_loss"], *validated, *chain(*measured)]
    require(all(type(each) in (int, float) for each in numbers), "a loss or a rate is no number")
    counted = all(type(each.iteration) is int for each in epochs)
    require(counted and len(history["lr"]) == len(history["train_loss"]), "its length is wrong")
    return TrainingHistory(history["lr"], history["train_loss"], epochs)


def _children(run: Run) -> list[Run]:
    """Return the finished child runs of a run, oldest first."""
    parent = {"mlflow.parentRunId": run.info.run_id}
    return find_runs(parent, finished=True, experiment=run.info.experiment_id)[::-1]
