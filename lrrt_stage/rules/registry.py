"""The registry of suggestion rules.

A rule is a function from a curve and a smoothing to an :class:`LRRange`, registered in
:data:`RULES` by ``@rule("name")``; nothing else needs to know about it. The built-in rules are in
:mod:`lrrt_stage.rules.robust` and :mod:`lrrt_stage.rules.published`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, unknown_name
from lrrt_stage.settings import Options, setting

__all__ = ["RULES", "SuggestionOptions", "rule", "suggest", "suggest_all"]

Rule = Callable[[LRCurve, Smoothing], LRRange]
RULES: dict[str, Rule] = {}
"""Name of a rule -> the rule."""


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule ``name``."""

    def register(function: Rule) -> Rule:
        RULES[name] = function
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
    suggestions: dict[str, LRRange | NoSuggestion] = {}
    for name in RULES:
        try:
            suggestions[name] = suggest(curve, name, smoothing)
        except NoSuggestion as reason:
            suggestions[name] = reason
    return suggestions
