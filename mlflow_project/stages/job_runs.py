"""Jobs that run side by side, each as a child run; finished jobs of interrupted runs are reused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlflow
from mlflow.entities import Run

from mlflow_project.stages.child_runs import children, job_fingerprints, log_outcome, read_result
from mlflow_project.tracking import console
from mlflow_project.tracking.runs import find_runs
from mlflow_project.tracking.tags import FINGERPRINT_TAG, STAGE_TAG
from pipeline import PreparedTask, Runtime
from pipeline.jobs.jobs import Job
from pipeline.jobs.pool import JobResult, run_jobs

__all__ = ["JobRuns", "finished_jobs", "interrupted", "same_runs"]


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
        fingerprints = job_fingerprints(self.prepared, jobs)
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
                log_outcome(self.prepared, outcome, fingerprints[index])
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
    return find_runs({FINGERPRINT_TAG: fingerprint, STAGE_TAG: stage})


def interrupted(runs: Sequence[Run]) -> list[Run]:
    """Return those of ``runs`` that ended before they were finished."""
    return [run for run in runs if run.info.status in ("FAILED", "KILLED")]


def finished_jobs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the finished child runs of ``runs`` by fingerprint."""
    return {
        child.data.tags[FINGERPRINT_TAG]: child
        for run in runs
        for child in children(run)
        if FINGERPRINT_TAG in child.data.tags
    }
