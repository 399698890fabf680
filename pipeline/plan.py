"""How a range test is run and read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lrrt_stage import RangeTestOptions, Smoothing, SuggestionOptions
from pipeline.validation import ValidationOptions

__all__ = ["RangeTestPlan"]


@dataclass(frozen=True)
class RangeTestPlan:
    """The ramp, what is validated on the way, the average, and the rule that is chosen."""

    ramp: RangeTestOptions = field(default_factory=RangeTestOptions)
    smoothing: Smoothing = field(default_factory=Smoothing)
    suggestion: SuggestionOptions = field(default_factory=SuggestionOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)

    def flat(self) -> dict[str, Any]:
        """Return all options by name."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}
