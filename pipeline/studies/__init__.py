"""Studies over many range tests: how far can a suggestion be trusted on this task?

A kind of study is one function from a :class:`Study` to its :class:`Findings`, registered in
:data:`KINDS` by ``@kind("name", position)`` in one of the modules imported here.
"""

from pipeline.studies import (  # noqa: F401 - each registers its kind
    batch_size,
    initializations,
    mismatch,
    smoothing,
    validation,
)
from pipeline.studies.report import study_frame, tests_frame, write_findings, write_report
from pipeline.studies.study import KINDS, Findings, Study, StudyOptions

__all__ = [
    "KINDS",
    "Findings",
    "Study",
    "StudyOptions",
    "study_frame",
    "tests_frame",
    "write_findings",
    "write_report",
]
