"""The rule ``robust``: a tenth of the learning rate at which the loss rises again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion
from lrrt_stage.rules.descent import never_fell, require_points, still_falling
from lrrt_stage.rules.registry import rule
from lrrt_stage.rules.unimodal import unimodal_regression

__all__ = ["UnimodalFit", "fit_unimodal", "robust"]

SIGNIFICANCE = 0.05
"""p-value below which a fall is more than chance."""


@rule("robust", reference=True)
def robust(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """A tenth of the mean learning rate of the loss's rise; no smoothing, no fitted constant.

    The loss is that of the probe where there is one, else of the training batches; of both where
    the probe does not fall (:func:`fit_unimodal`). What is above the loss at the initial weights
    counts as that, so an explosion weighs no more than all being lost. To the rest, the
    least-squares curve that falls and then rises is fitted
    (:func:`lrrt_stage.rules.unimodal.unimodal_regression`). Its rise ends the useful learning
    rates; where it is, is averaged over the heights from the floor up to the start, so that
    neither the place of a flat floor nor a single level decides. A tenth of it, as in the article's rule, since a
    training stays at the learning rates that the ramp only passes.
    """
    maximum = fit_unimodal(curve).rise / 10
    if maximum < curve.lr[0]:
        raise NoSuggestion(
            f"the loss rises within a decade of the first LR {curve.lr[0]:g}: lower lr_start"
        )
    return LRRange.decade_below(maximum)


@dataclass(frozen=True)
class UnimodalFit:
    """The least-squares curve that falls and then rises, fitted to a range test's losses.

    Arrays have the curve's shape ``[n]``.
    """

    lr: np.ndarray
    start: float
    """Loss at the initial weights."""
    lost: np.ndarray
    """Where the loss is at or above ``start``, or was not finite."""
    loss: np.ndarray
    """The losses that are fitted: ``start`` where all is lost."""
    fit: np.ndarray
    fell: bool
    """Whether the losses up to the floor fall by more than chance."""

    @classmethod
    def of(cls, curve: LRCurve, series: str) -> UnimodalFit:
        """Fit the valley of ``loss`` or ``probe_loss``."""
        losses = getattr(curve, series)
        # A probe is the same at every iteration. Of other losses the first few say where they
        # start: the learning rates of the first tenth have done nothing yet.
        first = 1 if series == "probe_loss" else max(5, len(curve) // 10)
        start = float(np.median(losses[:first]))
        lost = ~(np.isfinite(losses) & np.isfinite(curve.loss) & (losses < start))
        kept = np.where(lost, start, losses)
        fit = unimodal_regression(kept)
        fell = bool(np.isfinite(start)) and _fell(losses[: _floor(fit) + 1])
        return cls(curve.lr, start, lost, kept, fit, fell)

    @property
    def floor(self) -> int:
        """Index of the last iteration on the floor."""
        return _floor(self.fit)

    @property
    def rise(self) -> float:
        """Learning rate at which the loss rises: the mean of log10(lr) over the heights.

        The last one where it has not risen.
        """
        if self.floor == len(self.fit) - 1:
            return float(self.lr[-1])
        height = np.diff(self.fit[self.floor :])
        place = np.log10(self.lr[self.floor :])
        return float(10 ** np.average((place[1:] + place[:-1]) / 2, weights=height))

    @property
    def recovered(self) -> float:
        """Share of the fall that the rise takes back, 0 … 1."""
        lowest = self.fit[self.floor]
        return float((self.fit[-1] - lowest) / (self.start - lowest))


def fit_unimodal(curve: LRCurve) -> UnimodalFit:
    """Fit the valley of the probe where there is one, else of the training losses.

    A few examples may be unlike the others: where learning is slow, the first steps make their
    loss higher. So a descent of the training losses alone is enough for an answer. Which of the
    two then says where it ends? The one that rises later, since what little descent there is,
    noise can feign to end early, but not to outlast the explosion.

    Raises
    ------
    NoSuggestion
        For too few points; losses that never fell, by more than chance; and one that never rose
        again.
    """
    require_points(curve)
    valley = UnimodalFit.of(curve, "loss" if curve.probe_loss is None else "probe_loss")
    if not valley.fell:
        training = UnimodalFit.of(curve, "loss")
        if not np.isfinite(valley.start) or not training.fell:
            raise never_fell(curve, valley.start, float(valley.fit.min()))
        risen = valley.floor < len(curve) - 1
        valley = max(training, valley, key=lambda each: each.rise) if risen else training
    if valley.floor == len(curve) - 1:
        if curve.stop == "completed":
            raise still_falling(curve)
        if curve.stop == "interrupted":
            raise NoSuggestion("the test was interrupted before the loss rose: run it again")
    return valley


def _floor(fit: np.ndarray) -> int:
    return int(np.flatnonzero(fit == fit.min())[-1])


def _fell(losses: np.ndarray) -> bool:
    """Tell whether the later of the losses are lower than the earlier ones by more than chance.

    The most significant of Student's t-tests between the ranks before and after a split; as many
    as there are tests, as much smaller must its p-value be (Bonferroni). Ranks, so that a single
    very low or very high loss does not decide.
    """
    n = len(losses)
    if n < 3:
        return False
    ranks = rankdata(np.nan_to_num(losses, nan=np.inf, posinf=np.inf))
    before = np.arange(1, n)
    after = n - before
    sums, squares = ranks.cumsum(), (ranks**2).cumsum()
    early, late = sums[:-1] / before, (sums[-1] - sums[:-1]) / after
    within = squares[-1] - before * early**2 - after * late**2
    # Without noise any fall counts; rounding makes what is left of it negative.
    error = np.sqrt(np.maximum(within, 0) / (n - 2) * (1 / before + 1 / after))
    with np.errstate(over="ignore"):
        largest = np.max((early - late) / np.maximum(error, np.finfo(float).tiny), initial=0)
    return bool(student.sf(largest, n - 2) * (n - 1) < SIGNIFICANCE)
