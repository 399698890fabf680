"""The curves of range tests: the loss that a rule reads, curves on one grid, and lag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from lrrt_stage import RULES, LRCurve, LRRTError, Reading, Smoothing, zero_phase
from lrrt_stage.rules.descent import SKIP_FIRST, SKIP_LAST, find_descent, require_turn

__all__ = ["lag_free", "lag_of_minimum", "loss_name", "loss_read", "stacked"]

SAME_LR = 1e-9
"""Relative difference up to which two learning rates are the same: the last digits of a ramp
depend on the machine that computed it."""

LAG_FREE_WINDOW = 1 / 3
"""Decades of LR that the weights of the lag-free average add up to, in :func:`lag_of_minimum`."""


def loss_read(reading: Reading) -> LRCurve:
    """Return the finite part of a curve, with the loss that the chosen rule reads."""
    curve = reading.curve.finite
    _, loss = RULES[reading.rule].reads(curve, reading.smoothing)
    return replace(curve, loss=loss)


def loss_name(readings: Iterable[Reading]) -> str:
    """Return the name of the loss that :func:`loss_read` returns; all names where they differ."""
    found = (RULES[each.rule].reads(each.curve.finite, each.smoothing) for each in readings)
    return " or ".join(dict.fromkeys(name for name, _ in found))


def stacked(curves: Sequence[LRCurve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put curves on the LR grid of the longest, a row per curve, in the given order.

    A test that ended early, or in a loss that is not finite, keeps its last finite value to the
    end, as in the published code of S. Maggio, *The Learning Rate Black Magic* (2020). So a
    quantile over tests counts a diverged one as high, but no higher than where it stopped.

    Parameters
    ----------
    curves
        One or more curves with a finite loss, whose tests followed the same ramp as far as each
        of them went.

    Returns
    -------
    lr : numpy.ndarray
        Shape ``[m]``.
    loss : numpy.ndarray
        Shape ``[k, m]``.
    running : numpy.ndarray
        Shape ``[m]``: how many tests were still running at a learning rate, which is how many
        rows of ``loss`` are measured there and not padded.

    Raises
    ------
    LRRTError
        If the ramps differ; the message names the first LR that does.
    """
    lr = max((curve.lr for curve in curves), key=len)
    loss = np.empty((len(curves), len(lr)))
    running = np.zeros(len(lr), dtype=np.int64)
    for index, curve in enumerate(curves):
        _require_same_ramp(index, curve.lr, lr)
        finite = curve.finite.loss
        loss[index, : len(finite)] = finite
        loss[index, len(finite) :] = finite[-1]
        running[: len(finite)] += 1
    return lr, loss, running


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
    lr, _, lowest = find_descent(curve, smoothing)
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
