"""How a range test is run and read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lrrt_stage import LRCurve, RangeTestOptions, Reading, Smoothing, SuggestionOptions
from lrrt_stage.settings import Options, require, setting
from pipeline.task.recipes import RecipeOptions

__all__ = ["RangeTestPlan", "ValidationOptions"]

LEAST_PROBE = 64
"""The probe's examples are always the same, so a few are enough; with fewer than
this, the suggestion depends on which examples they are."""


@dataclass(frozen=True)
class ValidationOptions(Options):
    """Held-out examples that a range test evaluates.

    ``sample`` evaluates a fixed, stratified sample at every iteration and the full set at two;
    ``full`` the full set at every iteration, as the article did (Fig 8), at many times the cost.
    """

    validation: str = setting(
        "none",
        "Validation loss at every iteration, on a sample or the full set.",
        choices=("none", "sample", "full"),
    )
    validation_sample: int | None = setting(
        None, "Examples in the sample; none: a third of a batch.", minimum=1
    )
    probe: int | None = setting(
        None,
        "Validation examples whose loss the rule robust reads, see probe_every; none: a "
        "third of a batch, but at least 64; 0: off.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.probe != 1,
            "probe=1 is not enough for batch norm: use none for the default, 0 to switch it off, "
            "or 2 and more",
        )

    def probe_size(self, batch_size: int) -> int:
        """Return the number of examples in the probe; 0: none."""
        return max(LEAST_PROBE, batch_size // 3) if self.probe is None else self.probe

    def sample_size(self, batch_size: int) -> int:
        """Return the number of examples in the sample."""
        return self.validation_sample or max(1, batch_size // 3)


@dataclass(frozen=True)
class RangeTestPlan:
    """The ramp, its validation, the average, and the rule whose suggestion is used."""

    ramp: RangeTestOptions = field(default_factory=RangeTestOptions)
    smoothing: Smoothing = field(default_factory=Smoothing)
    suggestion: SuggestionOptions = field(default_factory=SuggestionOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    """Where the options that were not given come from; kept as a record only."""

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> RangeTestPlan:
        """Return the plan of which ``dataclasses.asdict`` made ``parts``."""
        return cls(**{name: type(part)(**parts[name]) for name, part in vars(cls()).items()})

    def read(self, curve: LRCurve) -> Reading:
        """Return the reading of a curve with the rule and the average of this plan."""
        return Reading.from_curve(curve, self.suggestion.rule, self.smoothing)

    def flat(self) -> dict[str, Any]:
        """Return all options by name."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}
