"""A range of learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log10

from lrrt_stage.settings import require

__all__ = ["LRRange"]

DECADE = 10.0
"""A rule that suggests a single learning rate gets the decade below it as its range: one-cycle
starts at a tenth to a third of its peak (Smith 2018, arXiv 1803.09820)."""


@dataclass(frozen=True)
class LRRange:
    """Learning rates from ``min`` to ``max``, 0 < min < max."""

    min: float
    max: float

    def __post_init__(self) -> None:
        require(
            0 < self.min < self.max and isfinite(self.max / self.min),
            f"range ({self.min:g}, {self.max:g}) is not 0 < min < max of a finite width: swap or "
            "change them",
        )

    @property
    def decades(self) -> float:
        """Width on the log10 axis."""
        return log10(self.max / self.min)

    @classmethod
    def decade_below(cls, lr: float) -> LRRange:
        """The decade that ends at ``lr``."""
        return cls(lr / DECADE, lr)

    def __str__(self) -> str:
        return f"{self.min:.3g} to {self.max:.3g}"
