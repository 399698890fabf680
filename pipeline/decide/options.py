"""How many range tests are run for a suggestion, and how they agree on it."""

from __future__ import annotations

from dataclasses import dataclass

from lrrt_stage.settings import setting
from pipeline.jobs import MAX_TESTS
from pipeline.jobs.options import PoolOptions

__all__ = ["VARIED", "ConsensusOptions"]

VARIED = {
    "data-order": "the order of the data",
    "initializations": "initial weights and data order",
}
"""What the tests differ in -> its description."""


@dataclass(frozen=True)
class ConsensusOptions(PoolOptions):
    """How many tests are run for a suggestion, and how many of them have to agree."""

    tests: int = setting(
        1,
        "Range tests; above 1, the suggested range is the one that is safe for most of them.",
        minimum=1,
        maximum=MAX_TESTS,
    )
    vary: str = setting(
        "data-order",
        "What the tests differ in: the order of the data on the same weights, or both.",
        choices=VARIED,
    )
    agreement: float = setting(
        0.6,
        "Share of the tests for which the range has to be safe: 0.6 for most, 1 for all.",
        above=0,
        maximum=1,
    )
