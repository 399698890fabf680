"""A study's section, and the report of all studies of one task."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.settings import option_text
from mlflow_project.handoff.artifacts import run_file
from mlflow_project.stages.shared import short_name
from mlflow_project.stages.study_source import KIND_TAG
from mlflow_project.tracking.connection import experiment_id
from pipeline import PreparedTask, RangeTestPlan, Task
from pipeline.jobs.jobs import RangeTestJob
from pipeline.jobs.pool import JobResult
from pipeline.studies import Findings, write_findings, write_report
from pipeline.studies.report import SECTION

__all__ = ["SUBJECT_TAG", "report_subject", "with_failures", "write_study_report"]

SUBJECT_TAG = "lrrt.study_subject"


def report_subject(prepared: PreparedTask) -> str:
    """Return what the studies that belong into one report have in common."""
    task = prepared.task
    same = [task.dataset, task.model, task.model_args, task.optimizer, prepared.data.digest]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return f"{short_name(task)} {digest[:16]}"


def with_failures(findings: Findings, outcomes: Sequence[JobResult]) -> Findings:
    """Return the findings with what failed, which is left out of everything else."""
    failed = [(each.job.name, each.error) for each in outcomes if each.error]
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
    findings: Findings,
    kind: str,
    outcomes: Sequence[JobResult],
    subject: str,
    source_id: str | None,
) -> None:
    """Write the findings, and the report of this study with the latest of every other kind."""
    sections = _latest_sections(subject)
    setting = _setting([each.job for each in outcomes if isinstance(each.job, RangeTestJob)])
    if source_id is not None:
        setting += f"; taken from study {source_id}"
    sections[kind] = write_findings(findings, folder, kind, setting)
    write_report(sections, subject.rpartition(" ")[0], folder / "report.html")


def _setting(jobs: Sequence[RangeTestJob]) -> str:
    """Return in a line what range tests had in common, and not what was varied."""
    options = [asdict(job.task) | job.plan.flat() for job in jobs]
    defaults = asdict(Task()) | RangeTestPlan().flat()
    always = ("dataset", "model", "optimizer", "batch_size", "lr_start", "lr_end", "rule", "beta")
    same = [
        f"{name} {option_text(value)}"
        for name, value in options[0].items()
        if all(each[name] == value for each in options)
        and (name in always or value != defaults[name])
    ]
    return f"{len(jobs)} range tests: {', '.join(same)}"


def _latest_sections(subject: str) -> dict[str, str]:
    found = mlflow.MlflowClient().search_runs(
        [experiment_id()],
        f"tags.`{SUBJECT_TAG}` = '{subject}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
    )
    newest = {run.data.tags[KIND_TAG]: run for run in found}
    sections = {}
    for kind, run in newest.items():
        with tempfile.TemporaryDirectory(prefix="lrrt-") as scratch:
            try:
                sections[kind] = run_file(run, SECTION, scratch).read_text(encoding="utf-8")
            except LRRTError:
                continue  # its artifacts were deleted: the report has no section of it
    return sections
