"""Studies over many range tests: how far can a suggestion be trusted on this task?

A kind of study is one function from a :class:`Study` to its :class:`Findings`, put into
:data:`KINDS` by ``@kind("name")`` in one of the modules imported here.
"""

from pipeline.studies import (
    averages,
    batch_size,
    grouped,
    ingredients,
    mismatch,
    spread,
    witness,
)
from pipeline.studies.jobs import Job, Measured, RangeTestJob, Trained, TrainingJob
from pipeline.studies.pool import Outcome, run_jobs
from pipeline.studies.report import write_findings, write_report
from pipeline.studies.study import KINDS, Findings, Study, StudyOptions
from pipeline.studies.tables import study_frame, tests_frame

__all__ = [
    "KINDS",
    "Findings",
    "Job",
    "Measured",
    "Outcome",
    "RangeTestJob",
    "Study",
    "StudyOptions",
    "Trained",
    "TrainingJob",
    "averages",
    "batch_size",
    "grouped",
    "ingredients",
    "mismatch",
    "run_jobs",
    "spread",
    "study_frame",
    "tests_frame",
    "witness",
    "write_findings",
    "write_report",
]
