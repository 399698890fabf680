"""Studies over many range tests: how far can a suggestion be trusted on this task?

A kind of study is a function from a :class:`Study` to its :class:`Findings`, in :data:`KINDS`.
"""

from pipeline.studies.batch_size import batch_size_study
from pipeline.studies.initializations import data_order_study, initializations_study
from pipeline.studies.mismatch import mismatch_study
from pipeline.studies.report import study_frame, tests_frame, write_findings
from pipeline.studies.smoothing import smoothing_study
from pipeline.studies.study import KINDS, Findings, Study, StudyOptions
from pipeline.studies.validation import validation_study

__all__ = [
    "KINDS",
    "Findings",
    "Study",
    "StudyOptions",
    "study_frame",
    "tests_frame",
    "write_findings",
]

KINDS.update(
    {
        "smoothing": smoothing_study,
        "initializations": initializations_study,
        "data-order": data_order_study,
        "mismatch": mismatch_study,
        "validation": validation_study,
        "batch-size": batch_size_study,
    }
)
