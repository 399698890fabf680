"""How far a suggestion can be trusted: an interval, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log10

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, Verdict
from lrrt_stage.rules.registry import RULES, read_by, suggest
from lrrt_stage.rules.robust import UnimodalFit, fit_unimodal

__all__ = ["CLEAR_DECADES", "Confidence", "confidence", "confidence_all"]

CLEAR_DECADES = log10(2)
"""A suggestion whose interval is wider than a factor of two is uncertain."""
COVERAGE = 0.9
RESAMPLES = 100
"""Of each witness; the ends of a 90 % interval then have five values beyond them."""


@dataclass(frozen=True)
class Confidence:
    """What is known about a suggested maximum."""

    low: float
    high: float
    """Ends of its interval, learning rates; NaN where there is no suggestion."""
    verdict: Verdict

    @property
    def decades(self) -> float:
        """Width of the interval on the log10 axis."""
        return log10(self.high / self.low) if self.low > 0 else float("nan")

    def __str__(self) -> str:
        if self.low > 0:
            return f"{self.verdict} (maximum {self.low:.3g} to {self.high:.3g})"
        return str(self.verdict)

    @property
    def clear(self) -> bool:
        """Whether the verdict is ``clear``."""
        return self.verdict is Verdict.CLEAR


def confidence(
    curve: LRCurve, rule: str = "robust", smoothing: Smoothing | None = None, *, seed: int = 0
) -> Confidence:
    """Return the interval of the maximum that ``rule`` suggests, and the verdict.

    The interval holds the middle 90 % of what the rule answers to a hundred resampled curves.
    They are made by the wild bootstrap: the fitted valley plus its residuals with random signs,
    so that the noise stays as large where it was large. To a rule that reads the probe they are
    given without it too: two witnesses that disagree widen the interval. A descent that only one
    of them shows makes every suggestion uncertain.

    It is the uncertainty of reading this curve. Another initialisation or data order gives
    another curve; how far that moves the answer only several tests tell.

    Parameters
    ----------
    seed
        Of the signs.

    Raises
    ------
    LRRTError
        If there is no such rule.

    References
    ----------
    C. F. J. Wu (1986), R. Y. Liu (1988); signs of equal probability: R. Davidson and
    E. Flachaire, *The wild bootstrap, tamed at last*, Journal of Econometrics 146 (2008).
    """
    curve, smoothing = read_by(rule, curve), smoothing or Smoothing()
    try:
        answers = [suggest(curve, rule, smoothing).max]
    except NoSuggestion as reason:
        return Confidence(float("nan"), float("nan"), reason.verdict)
    # The curve as the rule reads it, and for a rule that reads the probe, the one without.
    witnesses = [replace(curve, probe_loss=None)]
    if curve.probe_loss is not None and _answer(witnesses[0], rule, smoothing) != answers:
        witnesses.insert(0, curve)
    try:
        recovered = fit_unimodal(witnesses[0]).recovered
    except NoSuggestion:  # of which this rule thinks otherwise
        recovered = 1.0
    generator = np.random.default_rng(seed)
    for witness in witnesses:
        for resampled in _resampled(witness, generator):
            answers += _answer(resampled, rule, smoothing)
    low, high = np.quantile(answers, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    # A valley fitted to a fitted valley is a little steeper, which can move all answers to a side.
    low, high = min(low, answers[0]), max(high, answers[0])
    if curve.stop == "completed" and recovered < 0.5:
        verdict = Verdict.STILL_FALLING
    elif log10(high / low) > CLEAR_DECADES or _only_one_fell(curve):
        verdict = Verdict.NOISY
    else:
        verdict = Verdict.CLEAR
    return Confidence(float(low), float(high), verdict)


def confidence_all(curve: LRCurve, smoothing: Smoothing | None = None) -> dict[str, Confidence]:
    """Return what :func:`confidence` says of every rule."""
    return {name: confidence(curve, name, smoothing) for name in RULES}


def _only_one_fell(curve: LRCurve) -> bool:
    """Tell whether only the probe or only the training losses show a descent."""
    if curve.probe_loss is None:
        return False
    return UnimodalFit.of(curve, "loss").fell != UnimodalFit.of(curve, "probe_loss").fell


def _answer(curve: LRCurve, rule: str, smoothing: Smoothing) -> list[float]:
    """Return the maximum that the rule suggests, or nothing: noise may hide a weak descent."""
    try:
        return [suggest(curve, rule, smoothing).max]
    except NoSuggestion:
        return []


def _resampled(curve: LRCurve, generator: np.random.Generator) -> Iterator[LRCurve]:
    """Yield curves with the noise of ``curve`` at random signs, where it is below the start."""
    names = ["loss"] if curve.probe_loss is None else ["loss", "probe_loss"]
    valleys = {name: UnimodalFit.of(curve, name) for name in names}
    for _ in range(RESAMPLES):
        signs = generator.choice([-1.0, 1.0], len(curve))
        changed = {}
        for name, valley in valleys.items():
            resampled = valley.fit + signs * (valley.loss - valley.fit)
            changed[name] = np.where(valley.lost, getattr(curve, name), resampled)
        yield replace(curve, **changed)
