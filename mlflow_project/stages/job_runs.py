"""Jobs run side by side, each as a child run; what an interrupted run finished is taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlflow
from mlflow.entities import Run

from mlflow_project.handoff.fingerprints import FINGERPRINT_TAG
from mlflow_project.stages.child_runs import children, job_fingerprints, log_outcome, read_result
from mlflow_project.tracking import console
from mlflow_project.tracking.tags import STAGE_TAG
from pipeline import PreparedTask, Runtime
from pipeline.jobs.jobs import Job
from pipeline.jobs.pool import JobResult, run_jobs

__all__ = ["JobRuns", "cut_off", "finished_children", "same_runs"]


class JobRuns:
    """Runs jobs, each as a child of ``run``; those that an earlier run finished are taken over.

    ``finished`` holds these by fingerprint. ``outcomes`` are all that there are, also after an
    interruption.
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
        marks = job_fingerprints(self.prepared, jobs)
        taken = [self.finished.get(mark) for mark in marks]
        for found in taken:
            if found is not None:
                mlflow.MlflowClient().set_tag(
                    found.info.run_id, "mlflow.parentRunId", self.run.info.run_id
                )
        missing = [index for index, found in enumerate(taken) if found is None]
        if len(missing) < len(jobs):
            console.note(f"{len(jobs) - len(missing)} of {len(jobs)} are finished already")
        done = {
            index: JobResult(jobs[index], read_result(found))
            for index, found in enumerate(taken)
            if found is not None
        }
        with console.progress(self.title) as progress:
            progress(len(done), len(jobs))

            def on_done(index: int, outcome: JobResult) -> None:
                log_outcome(self.prepared, outcome, marks[missing[index]])
                done[missing[index]] = outcome
                progress(len(done), len(jobs))
                if outcome.error:
                    console.note(f"{outcome.job.name} failed: {outcome.error}")

            try:
                run_jobs([jobs[index] for index in missing], self.runtime, self.workers, on_done)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{len(done)} of {len(jobs)} are finished and kept; the same command goes on "
                    "with the others"
                ) from None
            finally:
                # Those of an interrupted study are written into its tables too.
                outcomes = [done[index] for index in sorted(done)]
                self.outcomes += outcomes
        return outcomes


def same_runs(run: Run, mark: str, stage: str) -> list[Run]:
    """Return the runs of ``stage`` with the fingerprint ``mark`` in the experiment of ``run``."""
    return list(
        mlflow.MlflowClient().search_runs(
            [run.info.experiment_id],
            f"tags.`{FINGERPRINT_TAG}` = '{mark}' and tags.`{STAGE_TAG}` = '{stage}'",
        )
    )


def cut_off(runs: Sequence[Run]) -> list[Run]:
    """Return those of ``runs`` that ended before they were finished."""
    return [each for each in runs if each.info.status in ("FAILED", "KILLED")]


def finished_children(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the finished jobs of ``runs`` by fingerprint."""
    return {
        child.data.tags[FINGERPRINT_TAG]: child
        for each in runs
        for child in children(each)
        if FINGERPRINT_TAG in child.data.tags
    }
