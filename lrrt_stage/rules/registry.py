"""The registry of suggestion rules.

A rule is a function from a curve and a smoothing to an :class:`LRRange`, registered in
:data:`RULES` by ``@rule("name")``; nothing else needs to know about it. The built-in rules are in
:mod:`lrrt_stage.rules.robust` and :mod:`lrrt_stage.rules.published`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, unknown_name
from lrrt_stage.settings import Options, setting

__all__ = ["RULES", "Rule", "SuggestionOptions", "rule", "smoothed_loss", "suggest", "suggest_all"]

ReadRange = Callable[[LRCurve, Smoothing], LRRange]
ReadLoss = Callable[[LRCurve, Smoothing], tuple[str, np.ndarray]]


def smoothed_loss(curve: LRCurve, smoothing: Smoothing) -> tuple[str, np.ndarray]:
    """Return the name and the values, shape ``[n]``, of the loss that most rules read."""
    return "smoothed training loss", smoothing(curve.loss)


@dataclass(frozen=True)
class Rule:
    """A registered rule, which is called as its function: ``RULES[name](curve, smoothing)``."""

    function: ReadRange
    reads: ReadLoss
    """Function from a curve and a smoothing to the name and the values of the loss it reads."""
    pace_decades: float
    """Mean distance, in decades, between its suggestions for the default ramp and for one of ten
    times the iterations; 0 if it was not measured. See ``docs/suggestions.md``."""
    start_decades: float
    """The same for a first learning rate of 1e-8 to 1e-5."""

    def __call__(self, curve: LRCurve, smoothing: Smoothing) -> LRRange:
        """Return the suggested range; raise NoSuggestion if there is none."""
        return self.function(curve, smoothing)

    @property
    def explanation(self) -> str:
        """What the rule does, in plain words: the first paragraph of its docstring."""
        paragraph = (inspect.getdoc(self.function) or "").partition("\n\n")[0]
        return re.sub(r":\w+:|`", "", paragraph).replace("\n", " ")


RULES: dict[str, Rule] = {}
"""Name of a rule -> the rule."""


def rule(
    name: str,
    *,
    reads: ReadLoss = smoothed_loss,
    pace_decades: float = 0.0,
    start_decades: float = 0.0,
) -> Callable[[ReadRange], ReadRange]:
    """Register the decorated function as the rule ``name``; for the rest, see :class:`Rule`."""

    def register(function: ReadRange) -> ReadRange:
        RULES[name] = Rule(function, reads, pace_decades, start_decades)
        return function

    return register


@dataclass(frozen=True)
class SuggestionOptions(Options):
    """Which rule is used. Every rule is computed and recorded at every test."""

    rule: str = setting("robust", "Rule whose range training uses.", choices=RULES)


def suggest(curve: LRCurve, rule: str = "robust", smoothing: Smoothing | None = None) -> LRRange:
    """Return the range that ``rule`` reads from ``curve``.

    Raises
    ------
    NoSuggestion
        If the rule has no suggestion for this curve; the message says why and what to do.
    LRRTError
        If there is no such rule.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    return RULES[rule](curve, smoothing or Smoothing())


def suggest_all(
    curve: LRCurve, smoothing: Smoothing | None = None
) -> dict[str, LRRange | NoSuggestion]:
    """Return the suggestion of every rule, or why it has none."""
    return {name: ask(curve, name, smoothing) for name in RULES}


def ask(curve: LRCurve, rule: str, smoothing: Smoothing | None) -> LRRange | NoSuggestion:
    """Return the suggestion of a rule, or why it has none."""
    try:
        return suggest(curve, rule, smoothing)
    except NoSuggestion as reason:
        return reason
