"""The study stage: many range tests under one parent run, their figures and a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd
from mlflow.entities import Run

from lrrt_stage import NoSuggestion
from lrrt_stage.files import write_text
from lrrt_stage.plots.comparison_plot import comparison_figure
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import require
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.stages.job_runs import JobRuns, finished_jobs, same_runs
from mlflow_project.stages.shared import task_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.record import get_run
from mlflow_project.tracking.runs import log_prepared, require_resumable, stage_run
from mlflow_project.tracking.views import set_description
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task, TrainOptions
from pipeline.jobs.jobs import FailedJob, JobResult, RangeTestJob, RangeTestResult
from pipeline.studies.curves import drawable
from pipeline.studies.options import StudyOptions
from pipeline.studies.report import study_frame, tests_frame, write_findings
from pipeline.studies.study import Findings, Study

__all__ = ["study_stage"]

KIND_TAG = "lrrt.study"


def study_stage(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    training: TrainOptions,
    options: StudyOptions,
) -> str:
    """Carry out a study as a run with a child run per test, and return its id.

    The tests of an interrupted or failed study of the same task and options are reused.

    Raises
    ------
    LRRTError
        If the task or the study's options cannot be used, before any test starts; or if too few
        tests have a suggestion, with those tests kept.
    """
    with stage_run("study", f"{options.kind} {task.short_name}") as run:
        require(
            not task.initial.startswith("run:"),
            f"init={task.init!r}: a study's tests draw their own weights: download the weights of "
            "the run and give init=file:PATH",
        )
        log_options(task, plan, training, options)
        prepared = PreparedTask(task, runtime)
        log_prepared(prepared)
        same = fingerprint(
            "study",
            prepared,
            # The tests run with one thread each, wherever they do.
            threads=1,
            options=replace(options.without_place(), resume=None),
            plan=plan,
            training=training,
        )
        finished = _finished_tests(same, options.resume)
        run.set_tags({tags.FINGERPRINT: same, KIND_TAG: options.kind})
        folder = run.begin_work()
        tests = JobRuns(run, prepared, options.kind, options, finished)
        study = Study(task, plan, options, training, tests)
        try:
            findings = study.findings()
        except NoSuggestion:
            # What was measured is all there is to show.
            measured = [each for each in tests.results if isinstance(each, RangeTestResult)]
            readings = {test.job.name: test.reading for test in drawable(measured)}
            save_figure(comparison_figure("", readings), folder / "curves.png")
            raise
        finally:
            _write_tables(folder, tests.results)
        findings = _with_failures(findings, tests.results)
        count = sum(isinstance(each.job, RangeTestJob) for each in tests.results)
        parameters = sorted(run.params.items())
        started = ", ".join(f"{name} {value}" for name, value in parameters)
        logged = run.as_run().info
        provenance = {
            "task": task.short_name,
            "setting": f"{count} range tests, started with {started}",
            "run": f"{logged.run_name} ({run.run_id})",
            "date": f"{datetime.fromtimestamp(logged.start_time / 1000):%Y-%m-%d %H:%M}",
        }
        write_findings(findings, folder, options.kind, plan.suggestion.rule, provenance)
        failed = sum(isinstance(each, FailedJob) for each in tests.results)
        known = {name: value for name, value in findings.metrics.items() if math.isfinite(value)}
        run.log_metrics({**known, "failed_tests": failed})
        set_description(
            f"Study of {task_words(task)}: {findings.question}",
            *findings.sentences,
            f"What to do: {findings.advice}",
            "The figures are in `report.html`, among the artifacts.",
        )
        for sentence in (*findings.sentences, findings.advice):
            console.note(sentence)
    return run.run_id


def _write_tables(folder: Path, results: Sequence[JobResult]) -> None:
    """Write what there is of ``study.csv`` and ``tests.csv``."""
    done = [result for result in results if not isinstance(result, FailedJob)]
    if done:
        write_text(folder / "study.csv", study_frame(done).to_csv(index=False))
    if results:
        write_text(folder / "tests.csv", tests_frame(results).to_csv(index=False))


def _finished_tests(study_fingerprint: str, resume: str | None) -> dict[str, Run]:
    """Return the finished tests of the interrupted study that is resumed, by fingerprint."""
    if resume is not None:
        resumed = get_run(resume)
        require_resumable(resumed, study_fingerprint)
        return finished_jobs([resumed])
    for other in same_runs(study_fingerprint, "study", "RUNNING"):
        console.note(
            f"study {other.info.run_id} with the same options is marked as running: if it was "
            f"killed, stop this one and start it again with --resume {other.info.run_id}"
        )
    return finished_jobs(same_runs(study_fingerprint, "study", "FAILED", "KILLED"))


def _with_failures(findings: Findings, results: Sequence[JobResult]) -> Findings:
    """Return the findings with what failed, which is left out of everything else."""
    failed = [(each.job.name, each.reason) for each in results if isinstance(each, FailedJob)]
    if not failed:
        return findings
    sentence = f"{len(failed)} of {len(results)} tests failed and are left out."
    table = pd.DataFrame(failed, columns=["test", "reason"])
    return replace(
        findings,
        sentences=[*findings.sentences, sentence],
        tables={**findings.tables, "Failed": table},
    )
