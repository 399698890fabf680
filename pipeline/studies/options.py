"""Which study, and how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require, setting
from pipeline.jobs import MAX_TESTS
from pipeline.jobs.options import PoolOptions

__all__ = ["KINDS", "StudyOptions"]

KINDS = {
    "smoothing": "pipeline.studies.smoothing:smoothing_study",
    "initializations": "pipeline.studies.initializations:initializations_study",
    "data-order": "pipeline.studies.initializations:data_order_study",
    "mismatch": "pipeline.studies.mismatch:mismatch_study",
    "validation": "pipeline.studies.validation:validation_study",
    "batch-size": "pipeline.studies.batch_size:batch_size_study",
}
"""Name of a kind of study -> where its function is, which is imported for a study of this kind."""


@dataclass(frozen=True)
class StudyOptions(PoolOptions):
    """Which study, and how large."""

    kind: str = setting("initializations", "What is studied.", choices=KINDS)
    tests: int | None = setting(
        None,
        "Range tests, or tests per setting, except of smoothing and validation; none: the number "
        "that suits the kind.",
        minimum=1,
        maximum=MAX_TESTS,
    )
    batch_sizes: str = setting("16,32,64,128,256", "Batch sizes of kind batch-size.")
    betas: str = setting("0.9,0.95,0.98,0.99", "Smoothing factors of kind smoothing.")
    resume: str | None = setting(
        None,
        "Study that was cut off without notice, to go on with; others are found by themselves.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.tests is None or self.kind not in ("smoothing", "validation"),
            f"tests={self.tests} is of no use, kind={self.kind} has a number of its own: leave it "
            "out",
        )

    def list_of(self, name: str, convert: Callable[[str], Any]) -> list[Any]:
        """Return the comma-separated option ``name`` as values, sorted, each once."""
        text = getattr(self, name)
        try:
            return sorted({convert(part) for part in text.split(",")})
        except ValueError:
            default = getattr(type(self), name)
            raise LRRTError(
                f"{name}={text!r} is not a list of numbers: write them as in {default}"
            ) from None
