"""How a range test is run and read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lrrt_stage import LRCurve, RangeTestOptions, Reading, Smoothing, SuggestionOptions
from pipeline.task.evaluation import ValidationOptions
from pipeline.task.recipes import RecipeOptions

__all__ = ["RangeTestPlan"]


@dataclass(frozen=True)
class RangeTestPlan:
    """The ramp, what is validated on the way, the average, and the rule that is chosen."""

    ramp: RangeTestOptions = field(default_factory=RangeTestOptions)
    smoothing: Smoothing = field(default_factory=Smoothing)
    suggestion: SuggestionOptions = field(default_factory=SuggestionOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    """Where the options that were not given come from; said for the record."""

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> RangeTestPlan:
        """Return the plan that ``dataclasses.asdict`` took apart."""
        return cls(
            RangeTestOptions(**parts["ramp"]),
            Smoothing(**parts["smoothing"]),
            SuggestionOptions(**parts["suggestion"]),
            ValidationOptions(**parts["validation"]),
            RecipeOptions(**parts["recipe"]),
        )

    def read(self, curve: LRCurve) -> Reading:
        """Return the reading of a curve with the rule and the average of this plan."""
        return Reading.from_curve(curve, self.suggestion.rule, self.smoothing)

    def flat(self) -> dict[str, Any]:
        """Return all options by name."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}
