"""The curves of many range tests side by side: the median, the band, and the lag of an average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrrt_stage import LRCurve, LRRTError, Smoothing, zero_phase
from lrrt_stage.rules.descent import SKIP_FIRST, SKIP_LAST, descent, require_turn
from lrrt_stage.settings import require

__all__ = ["Band", "Stacked", "band", "lag_free", "lag_of_minimum", "stacked"]

SAME_LR = 1e-9
"""Relative difference up to which two learning rates are the same: the last digits of a ramp
depend on the machine that computed it."""

LAG_FREE_WINDOW = 1 / 3
"""Decades of LR that the weights of the lag-free average add up to, in :func:`lag_of_minimum`."""


@dataclass(frozen=True, eq=False)
class Stacked:
    """The curves of ``k`` tests on one grid of ``m`` learning rates. Arrays are read-only.

    ``lr`` has shape ``[m]``, ``loss`` ``[k, m]``, and ``alive`` ``[m]``: how many tests were
    still running at each LR, which is how many rows of ``loss`` are measured there and not
    padded.
    """

    lr: np.ndarray
    loss: np.ndarray
    alive: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.lr, self.loss, self.alive):
            array.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Band:
    """The middle and the spread of ``k`` losses at each of ``m`` learning rates, all ``[m]``."""

    median: np.ndarray
    q10: np.ndarray
    q90: np.ndarray


def stacked(curves: Sequence[LRCurve], smoothing: Smoothing | None = None) -> Stacked:
    """Return the curves on the LR grid of the longest, one row per curve, in the given order.

    A test that ended early, or in a loss that is not finite, keeps its last finite value to the
    end, as in the published code of S. Maggio, *The Learning Rate Black Magic* (2020). So a
    quantile over tests counts a diverged one as high, but no higher than where it stopped.

    Parameters
    ----------
    curves
        One or more curves whose tests followed the same ramp, as far as each of them went.
    smoothing
        The average to take of every curve before it is padded; None for the raw losses.

    Raises
    ------
    LRRTError
        If there is no curve, if one has no finite loss, or if the ramps differ; the message
        names the first LR that does.
    """
    require(len(curves) > 0, "there are no curves to put together: run at least one range test")
    lr = np.array(max((curve.lr for curve in curves), key=len))
    loss = np.empty((len(curves), len(lr)))
    alive = np.zeros(len(lr), dtype=np.int64)
    for index, curve in enumerate(curves):
        _require_same_ramp(index, curve.lr, lr)
        finite = curve.finite.loss
        length = len(finite)
        require(length > 0, f"curve {index} has no finite loss: leave it out")
        loss[index, :length] = finite if smoothing is None else smoothing(finite)
        loss[index, length:] = loss[index, length - 1]
        alive[:length] += 1
    return Stacked(lr, loss, alive)


def band(curves: Stacked) -> Band:
    """Return the median over tests at each LR, and the 10 % and 90 % quantiles.

    Quantiles are interpolated linearly between the sorted losses (Hyndman & Fan 1996, type 7).
    """
    q10, median, q90 = np.quantile(curves.loss, [0.1, 0.5, 0.9], axis=0)
    return Band(median, q10, q90)


def lag_of_minimum(curve: LRCurve, smoothing: Smoothing) -> float:
    """Return how many decades of LR the smoothed loss reaches its minimum late.

    That is log10 of the LR at the minimum of the smoothed loss, less that at the minimum of a
    lag-free average (:func:`lrrt_stage.zero_phase`), both over the points that the rules look
    at. A suggested maximum that is a tenth of the LR at the minimum is too high by as much.

    The lag-free average has weights that add up to a third of a decade of the ramp: enough to
    quiet the batches, and narrower than the valley. It must not follow ``smoothing``: at 100
    iterations and β = 0.98 an average of the same width takes in the whole explosion and moves
    its minimum by decades the other way. Where a third of a decade is wider than the smoothing,
    as wide as that is taken (factor β / (2 - β), whose weights have the same sum, 1 / (1 - β)),
    so that the raw loss, β = 0, has no lag. The valley is steeper at its high side, which moves
    the lag-free minimum down too, by less than a tenth of a decade; on simulated curves, noise of
    5 % of the loss moves it by about a tenth either way, noise of 15 % by two tenths.

    Returns
    -------
    float
        In decades. A lower bound where the smoothed loss is still falling at the curve's end.

    Raises
    ------
    NoSuggestion
        If the curve is too short, its loss never fell, or it is still falling at the last LR of
        a completed test.
    """
    lr, _, lowest = descent(curve, smoothing)
    free = lag_free(curve.finite, smoothing.beta / (2 - smoothing.beta))[SKIP_FIRST:-SKIP_LAST]
    turn = int(np.argmin(free))
    require_turn(curve, lr, turn)
    return float(np.log10(lr[lowest]) - np.log10(lr[turn]))


def lag_free(curve: LRCurve, beta_at_most: float = 1.0) -> np.ndarray:
    """Return the loss averaged over a third of a decade of LR to both sides alike, shape ``[n]``.

    ``beta_at_most`` bounds the factor of the average (:func:`lrrt_stage.zero_phase`).
    """
    per_iteration = float(np.median(np.diff(np.log10(curve.lr))))
    width = max(1.0, LAG_FREE_WINDOW / per_iteration)
    return zero_phase(curve.loss, min(beta_at_most, (width - 1) / (width + 1)))


def _require_same_ramp(index: int, lr: np.ndarray, longest: np.ndarray) -> None:
    differs = np.flatnonzero(~np.isclose(lr, longest[: len(lr)], rtol=SAME_LR, atol=0))
    if differs.size:
        at = int(differs[0])
        raise LRRTError(
            f"curve {index} has lr={lr[at]:g} at iteration {at} where the longest has "
            f"{longest[at]:g}: put only tests of one ramp together"
        )
