"""A study's section, and the report of all studies of one task."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run

from lrrt_stage import LRRTError
from lrrt_stage.settings import option_text
from mlflow_project.handoff.artifacts import readable, run_file
from mlflow_project.stages.shared import short_name
from mlflow_project.stages.study_source import KIND_TAG
from mlflow_project.tracking.runs import find_runs
from pipeline import PreparedTask, RangeTestPlan, Task
from pipeline.jobs.jobs import RangeTestJob
from pipeline.jobs.pool import JobResult
from pipeline.studies import Findings, write_findings, write_report
from pipeline.studies.report import FINDINGS, figure_names, section

__all__ = ["SUBJECT_TAG", "report_subject", "with_failures", "write_study_report"]

SUBJECT_TAG = "lrrt.study_subject"


def report_subject(prepared: PreparedTask) -> str:
    """Return what the studies of one report have in common."""
    task = prepared.task
    same = [task.dataset, task.model, task.model_args, task.optimizer, prepared.data.digest]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return f"{short_name(task)} {digest[:16]}"


def with_failures(findings: Findings, outcomes: Sequence[JobResult]) -> Findings:
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


def write_study_report(
    folder: Path,
    run: Run,
    findings: Findings,
    outcomes: Sequence[JobResult],
    source_id: str | None,
) -> None:
    """Write the findings, and the report of this study with the latest of every other kind."""
    tags = mlflow.get_run(run.info.run_id).data.tags
    kind, subject = tags[KIND_TAG], tags[SUBJECT_TAG]
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
