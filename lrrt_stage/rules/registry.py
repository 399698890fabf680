"""From a curve to the range of learning rates to train with.

A rule is one function from a curve and a smoothing to an :class:`LRRange`, put into :data:`RULES`
by ``@rule("name")``; nothing else has to know about it. Those that there are, are in
:mod:`lrrt_stage.rules.robust` and :mod:`lrrt_stage.rules.published`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, unknown_name
from lrrt_stage.settings import check_choices, setting

__all__ = [
    "RULES",
    "SuggestionOptions",
    "read_by",
    "rule",
    "suggest",
    "suggest_all",
]

Rule = Callable[[LRCurve, Smoothing], LRRange]
RULES: dict[str, Rule] = {}
"""Name of a rule -> the rule."""
OF_REFERENCE: set[str] = set()
"""Names of the rules that read a curve's reference, where it has one."""


@dataclass(frozen=True)
class SuggestionOptions:
    """Which rule's answer is chosen. Every rule is computed and recorded at every test."""

    rule: str = setting("robust", "Rule whose range is handed to training.", choices=RULES)

    def __post_init__(self) -> None:
        check_choices(self)


def suggest(curve: LRCurve, rule: str = "robust", smoothing: Smoothing | None = None) -> LRRange:
    """Return the range that ``rule`` reads from ``curve``.

    Raises
    ------
    NoSuggestion
        If the curve has no answer for this rule; the message says why and what to do.
    LRRTError
        If there is no such rule.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    return RULES[rule](read_by(rule, curve), smoothing or Smoothing())


def suggest_all(
    curve: LRCurve, smoothing: Smoothing | None = None
) -> dict[str, LRRange | NoSuggestion]:
    """Return every rule's answer, or why it has none."""
    answers: dict[str, LRRange | NoSuggestion] = {}
    for name in RULES:
        try:
            answers[name] = suggest(curve, name, smoothing)
        except NoSuggestion as reason:
            answers[name] = reason
    return answers


def read_by(rule: str, curve: LRCurve) -> LRCurve:
    """Return the curve that a rule reads: this one, or its reference."""
    return curve.reference if rule in OF_REFERENCE and curve.reference is not None else curve


def rule(name: str, *, reference: bool = False) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule ``name``.

    With ``reference`` it reads the curve's reference where there is one.
    """

    def register(function: Rule) -> Rule:
        RULES[name] = function
        if reference:
            OF_REFERENCE.add(name)
        return function

    return register
