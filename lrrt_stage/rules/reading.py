"""What is read from a range test: the suggestion of every rule, and the one that training uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, unknown_name
from lrrt_stage.rules.consensus import Consensus
from lrrt_stage.rules.registry import RULES, smoothed_loss
from lrrt_stage.rules.uncertainty import Suggestion, assess

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """A range test as it was read. It is made once, and then logged, drawn, and handed on.

    Examples
    --------
    >>> reading = Reading.from_curve(curve)                      # doctest: +SKIP
    >>> reading.final.range, reading.final.confidence            # doctest: +SKIP
    """

    curve: LRCurve
    suggestions: Mapping[str, Suggestion]
    """The suggestion of every rule."""
    rule: str
    """Name of the rule that was chosen."""
    smoothing: Smoothing
    """The average that rules of the smoothed loss read."""
    consensus: Consensus | NoSuggestion | None = None
    """What several tests agree on, of which ``curve`` is the first; None for a single test."""

    @classmethod
    def from_curve(
        cls, curve: LRCurve, rule: str = "robust", smoothing: Smoothing | None = None
    ) -> Reading:
        """Return what all rules suggest for ``curve``, with ``rule`` chosen.

        Raises
        ------
        LRRTError
            If there is no such rule.
        """
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        smoothing = smoothing or Smoothing()
        return cls(curve, assess(curve, RULES, smoothing), rule, smoothing)

    @property
    def chosen(self) -> Suggestion:
        """The suggestion of the chosen rule for this curve alone."""
        return self.suggestions[self.rule]

    @property
    def final(self) -> Suggestion:
        """The suggestion that training uses: that of the chosen rule, or the consensus."""
        if self.consensus is None:
            return self.chosen
        if isinstance(self.consensus, NoSuggestion):
            return Suggestion.missing(self.consensus)
        verdict = self.chosen.confidence.verdict
        return Suggestion(self.consensus.range, self.consensus.confidence(verdict))

    @property
    def lacks_probe(self) -> bool:
        """Whether the rule read the training loss for want of a probe, whose noise is less."""
        reads_probe = RULES[self.rule].reads is not smoothed_loss
        return reads_probe and self.curve.probe_loss is None

    @property
    def verdict(self) -> str:
        """The verdict on the final suggestion, and whether it was read without a probe."""
        verdict = str(self.final.confidence.verdict)
        return f"{verdict} (training loss)" if self.lacks_probe else verdict
