"""The study stage: many range tests under one parent run, their figures and a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow.entities import Run

from lrrt_stage import NoSuggestion
from lrrt_stage.settings import require
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.stages.job_runs import JobRuns, finished_jobs, interrupted, same_runs
from mlflow_project.stages.shared import short_name, task_words
from mlflow_project.stages.study_report import (
    SUBJECT_TAG,
    report_subject,
    with_failures,
    write_study_report,
)
from mlflow_project.stages.study_source import KIND_TAG, finished_tests
from mlflow_project.tracking import console
from mlflow_project.tracking.descriptions import describe
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import get_run, log_dataset, name_run, stage_run, staged_files
from mlflow_project.tracking.tags import FINGERPRINT_TAG
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task, TrainOptions
from pipeline.jobs.jobs import RangeTestResult
from pipeline.jobs.pool import JobResult
from pipeline.studies import KINDS, Findings, Study, StudyOptions, study_frame, tests_frame
from pipeline.studies.figures import losses_figure

__all__ = ["study_stage"]


def study_stage(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    training: TrainOptions,
    options: StudyOptions,
    *,
    fixed: frozenset[str] = frozenset(),
) -> str:
    """Carry out a study as a run with a child run per test, and return its id.

    The tests of an interrupted or failed study of the same task and options are reused.
    ``fixed`` names the options that the user gave.

    Raises
    ------
    LRRTError
        If the task or the study's options cannot be used, before any test starts; or if too few
        tests have a suggestion, with those tests kept.
    """
    with stage_run("study") as run:
        require(
            not task.init.startswith("run:"),
            f"init={task.init!r}: a study's tests draw their own weights: download the weights of "
            "the run and give init=file:PATH",
        )
        prepared = PreparedTask(task, runtime)
        name_run(run, f"{options.kind} {short_name(task)}")
        log_options(run, task, plan, training, options, device=str(prepared.device))
        log_dataset(prepared)
        source_id, source = None, None
        if options.study_run_id is not None:
            source_id, source = finished_tests(options.study_run_id, prepared, plan)
            mlflow.set_tag("lrrt.source_study_id", source_id)
        same = _study_fingerprint(prepared, plan, training, options, fixed)
        finished = _finished_tests(same, options.resume)
        tests = JobRuns(run, prepared, runtime, options.kind, options.workers, finished)
        tests.outcomes += [JobResult(test.job, test) for test in source or []]
        subject = report_subject(prepared)
        mlflow.set_tags({FINGERPRINT_TAG: same, KIND_TAG: options.kind, SUBJECT_TAG: subject})
        study = Study(
            task,
            plan,
            options,
            training,
            prepared.data.sizes[0],
            tests,
            source,
            fixed,
            lambda changed: PreparedTask(changed, runtime, prepared.data),
        )
        with staged_files(run) as folder:
            try:
                findings = KINDS[options.kind](study)
            except NoSuggestion:
                _draw_losses(folder, tests.outcomes)
                raise
            finally:
                _write_tables(folder, tests.outcomes)
            findings = with_failures(findings, tests.outcomes)
            write_study_report(folder, run, findings, tests.outcomes, source_id)
        _conclude(run, task, findings, tests.outcomes)
    return run.info.run_id


def _draw_losses(folder: Path, outcomes: Sequence[JobResult]) -> None:
    """Draw what was measured, where that is all there is to show."""
    results = [outcome.result for outcome in outcomes]
    measured = [result for result in results if isinstance(result, RangeTestResult)]
    losses_figure(measured).savefig(folder / "curves.png")


def _write_tables(folder: Path, outcomes: Sequence[JobResult]) -> None:
    """Write what there is of ``study.csv`` and ``tests.csv``."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if results:
        study_frame(results).to_csv(folder / "study.csv", index=False)
    if outcomes:
        tests_frame(outcomes).to_csv(folder / "tests.csv", index=False)


def _study_fingerprint(
    prepared: PreparedTask,
    plan: RangeTestPlan,
    training: TrainOptions,
    options: StudyOptions,
    fixed: frozenset[str],
) -> str:
    # Neither of the two, nor the threads of this process, changes what is found.
    options = replace(options, workers=None, resume=None)
    return fingerprint(
        "study",
        prepared,
        threads=1,
        plan=plan,
        training=training,
        options=options,
        fixed=sorted(fixed),
    )


def _finished_tests(study_fingerprint: str, resume: str | None) -> dict[str, Run]:
    """Return the finished tests of the interrupted study that is resumed, by fingerprint."""
    if resume is not None:
        resumed = get_run(resume)
        require(
            resumed.info.status != "FINISHED",
            f"study {resume} is finished: there is nothing to resume; leave resume out",
        )
        require(
            resumed.data.tags.get(FINGERPRINT_TAG) == study_fingerprint,
            f"run {resume} cannot be resumed: it is not a study of this task with these options "
            "and this code; give the options that it was started with",
        )
        return finished_jobs([resumed])
    same = same_runs(study_fingerprint, "study")
    for other in same:
        if other.info.status == "RUNNING":
            console.note(
                f"study {other.info.run_id} with the same options is marked as running: if it was "
                f"killed, stop this one and start it again with --resume {other.info.run_id}"
            )
    return finished_jobs(interrupted(same))


def _conclude(run: Run, task: Task, findings: Findings, outcomes: Sequence[JobResult]) -> None:
    failed = sum(bool(outcome.error) for outcome in outcomes)
    known = {name: value for name, value in findings.metrics.items() if math.isfinite(value)}
    mlflow.log_metrics({**known, "failed_tests": failed})
    describe(
        run,
        f"Study of {task_words(task)}: {findings.question}",
        *findings.sentences,
        f"What to do: {findings.advice}",
        "The figures are in `report.html`, among the artifacts.",
    )
    for sentence in (*findings.sentences, findings.advice):
        console.note(sentence)
