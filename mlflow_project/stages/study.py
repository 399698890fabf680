"""The study stage: many range tests under one parent run, their figures and a report."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run

from lrrt_stage import LRRTError, NoSuggestion
from lrrt_stage.settings import option_text, require
from mlflow_project.handoff.artifacts import find_run, read_json, readable, run_file
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.publishing import TASK, TASK_TAG
from mlflow_project.stages.job_runs import (
    JobRuns,
    children,
    finished_jobs,
    interrupted,
    read_result,
    same_runs,
)
from mlflow_project.stages.shared import short_name, task_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import (
    find_runs,
    get_run,
    log_dataset,
    name_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.views import set_description
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task, TrainOptions
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.jobs.pool import JobResult
from pipeline.studies import (
    KINDS,
    Findings,
    Study,
    StudyOptions,
    study_frame,
    tests_frame,
    write_findings,
    write_report,
)
from pipeline.studies.figures import losses_figure
from pipeline.studies.report import FINDINGS, figure_names, section

__all__ = ["study_stage"]

KIND_TAG, SUBJECT_TAG = "lrrt.study", "lrrt.study_subject"
KINDS_OF_SEEDS = ("initializations", "data-order", "mismatch")


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
            source_id, source = _tests_of_study(options.study_run_id, prepared, plan)
            mlflow.set_tag("lrrt.source_study_id", source_id)
        same = _study_fingerprint(prepared, plan, training, options, fixed)
        finished = _finished_tests(same, options.resume)
        tests = JobRuns(run, prepared, runtime, options.kind, options.workers, finished)
        tests.outcomes += [JobResult(test.job, test) for test in source or []]
        subject = _report_subject(prepared)
        mlflow.set_tags({tags.FINGERPRINT: same, KIND_TAG: options.kind, SUBJECT_TAG: subject})
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
            findings = _with_failures(findings, tests.outcomes)
            _write_study_report(folder, run, findings, tests.outcomes, source_id)
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
            resumed.data.tags.get(tags.FINGERPRINT) == study_fingerprint,
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
    set_description(
        run,
        f"Study of {task_words(task)}: {findings.question}",
        *findings.sentences,
        f"What to do: {findings.advice}",
        "The figures are in `report.html`, among the artifacts.",
    )
    for sentence in (*findings.sentences, findings.advice):
        console.note(sentence)


def _report_subject(prepared: PreparedTask) -> str:
    """Return what the studies of one report have in common."""
    task = prepared.task
    same = [task.dataset, task.model, task.model_args, task.optimizer, prepared.data.digest]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return f"{short_name(task)} {digest[:16]}"


def _with_failures(findings: Findings, outcomes: Sequence[JobResult]) -> Findings:
    """Return the findings with what failed, which is left out of everything else."""
    failed = [(outcome.job.name, outcome.error) for outcome in outcomes if outcome.error]
    if not failed:
        return findings
    return replace(
        findings,
        sentences=[
            *findings.sentences,
            f"{len(failed)} of {len(outcomes)} tests failed and are left out.",
        ],
        tables={**findings.tables, "Failed": pd.DataFrame(failed, columns=["test", "reason"])},
    )


def _write_study_report(
    folder: Path,
    run: Run,
    findings: Findings,
    outcomes: Sequence[JobResult],
    source_id: str | None,
) -> None:
    """Write the findings, and the report of this study with the latest of every other kind."""
    logged = mlflow.get_run(run.info.run_id).data.tags
    kind, subject = logged[KIND_TAG], logged[SUBJECT_TAG]
    jobs = [outcome.job for outcome in outcomes if isinstance(outcome.job, RangeTestJob)]
    setting = _setting(jobs)
    if source_id is not None:
        setting += f"; taken from study {source_id}"
    started = datetime.fromtimestamp(run.info.start_time / 1000)
    source = {
        "setting": setting,
        "run": f"{run.info.run_name} ({run.info.run_id})",
        "date": f"{started:%Y-%m-%d %H:%M}",
    }
    write_findings(findings, folder, kind, jobs[0].plan.suggestion.rule, source)
    sections = _latest_sections(subject)
    sections[kind] = section(folder)
    write_report(sections, subject.rpartition(" ")[0], folder / "report.html")


def _setting(jobs: Sequence[RangeTestJob]) -> str:
    """Return in a line what range tests had in common, and not what was varied."""
    options = [asdict(job.task) | job.plan.flat() for job in jobs]
    defaults = asdict(Task()) | RangeTestPlan().flat()
    always = ("dataset", "model", "optimizer", "batch_size", "lr_start", "lr_end", "rule", "beta")
    same = [
        f"{name} {option_text(value)}"
        for name, value in options[0].items()
        if all(other[name] == value for other in options)
        and (name in always or value != defaults[name])
    ]
    return f"{len(jobs)} range tests: {', '.join(same)}"


def _latest_sections(subject: str) -> dict[str, str]:
    found = find_runs({SUBJECT_TAG: subject}, finished=True)
    newest = {run.data.tags[KIND_TAG]: run for run in reversed(found)}
    sections = {}
    for kind, run in newest.items():
        with tempfile.TemporaryDirectory(prefix="lrrt-") as scratch:
            try:
                findings = run_file(run, FINDINGS, scratch)
                with readable(run, findings):
                    for name in figure_names(findings.parent):
                        run_file(run, name, scratch)
                    sections[kind] = section(findings.parent)
            except LRRTError:
                continue  # its artifacts were deleted or altered: the report has no section of it
    return sections


def _tests_of_study(
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
        finished = find_runs({tags.STAGE: "study"}, finished=True)
        study = next((found for found in finished if _compares_seeds(found)), study)
    runs = _test_runs(study)
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
    return study.data.tags.get(KIND_TAG) in KINDS_OF_SEEDS and len(_test_runs(study)) >= 2


def _test_runs(study: Run) -> list[Run]:
    return [run for run in children(study) if run.data.tags[tags.STAGE] == "test"]


def _numbered(name: str) -> list[str | int]:
    """Return a sort key that puts test 2 before test 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
