"""Whether the loss of a range test fell, and where it is lowest."""

from __future__ import annotations

from functools import lru_cache
from math import log, sqrt

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import NoSuggestion, Verdict

__all__ = [
    "SKIP_FIRST",
    "SKIP_LAST",
    "decade_below",
    "find_descent",
    "never_fell",
    "require_points",
    "require_turn",
    "still_falling",
]

SKIP_FIRST, SKIP_LAST = 5, 1
"""Points of the curve that the article's published code leaves out."""
MIN_POINTS = 10


def find_descent(curve: LRCurve, smoothing: Smoothing) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the LRs and smoothed losses to read, and the index of the minimum among them.

    The arrays have shape ``[m]``: the finite part of the curve without its first
    :data:`SKIP_FIRST` and its last :data:`SKIP_LAST` points. The loss fell if it did so from some
    earlier point to the minimum by more than noise explains: the largest difference to expect among
    N pairs of points is sqrt(2 ln N) standard errors (the universal threshold of Donoho &
    Johnstone, 1994). Otherwise this raises NoSuggestion.
    """
    finite = require_points(curve)
    smoothed, highest, lowest, fell = _descent(finite.loss.tobytes(), smoothing)
    if not fell:
        raise never_fell(curve, float(smoothed[highest]), float(smoothed[lowest]))
    return finite.lr[SKIP_FIRST:-SKIP_LAST], smoothed.copy(), lowest


@lru_cache(maxsize=8)
def _descent(loss: bytes, smoothing: Smoothing) -> tuple[np.ndarray, int, int, bool]:
    """Return the smoothed loss, the indices where its descent begins and ends, and if it fell.

    The float64 losses are finite; what is returned leaves out their ends. Most rules read the same
    descent, one after the other.
    """
    raw = np.frombuffer(loss)
    window = slice(SKIP_FIRST, -SKIP_LAST)
    smoothed = smoothing(raw)[window]
    # The biased average starts near 0, which may be its minimum. So the descent starts at its
    # highest point before the minimum of the corrected average.
    corrected = Smoothing("corrected", smoothing.beta)(raw)[window]
    highest = int(np.argmax(smoothed[: int(np.argmin(corrected)) + 1]))
    lowest = highest + int(np.argmin(smoothed[highest:]))
    error = _standard_error(raw, lowest + SKIP_FIRST, smoothing.beta)[window]
    falls = smoothed[: lowest + 1] - smoothed[lowest]
    expected = sqrt(2 * log(len(smoothed) * (len(smoothed) - 1) / 2))
    fell = falls > expected * np.hypot(error[: lowest + 1], error[lowest])
    return smoothed, highest, lowest, bool(fell.any())


def require_points(curve: LRCurve) -> LRCurve:
    """Return the finite part of a curve; raise NoSuggestion if it has too few points."""
    finite = curve.finite
    ended, remedy = _how_it_ended(curve)
    if len(finite) < MIN_POINTS:
        raise NoSuggestion(
            f"too few points: {len(finite)} finite losses{ended}, {MIN_POINTS} are needed: "
            f"{'check data and loss, ' if ended else ''}raise iterations, or "
            f"{remedy if ended else 'lower lr_start'}"
        )
    return finite


def never_fell(curve: LRCurve, start: float, lowest: float) -> NoSuggestion:
    """Return the error for a loss that never fell: from ``start`` to ``lowest`` at best."""
    ended, remedy = _how_it_ended(curve)
    return NoSuggestion(
        f"the loss never fell: {start:.4g} to {lowest:.4g} at best, within the noise of the "
        f"batches{ended}: check data and loss, or {remedy}"
    )


def _how_it_ended(curve: LRCurve) -> tuple[str, str]:
    """Return what ended the losses, and the remedy for a curve without descent."""
    at = len(curve.finite)
    if curve.stop == "diverged" and len(curve):
        ended = f", until the stop rule ended the test at the LR {curve.lr[-1]:g}"
        return ended, "lower lr_start, or raise stop_multiple (none: never stop)"
    if at == len(curve):
        return "", "raise lr_end"
    return f", until one was {curve.loss[at]:g} at the LR {curve.lr[at]:g}", "lower lr_start"


def _standard_error(loss: np.ndarray, until: int, beta: float) -> np.ndarray:
    """Return the standard error of the bias-corrected average at every point.

    The noise of a batch is estimated from the differences between neighbours up to the index
    ``until``: for normal noise σ their median magnitude is 0.6745 √2 σ. The average of t batches
    with weights β^0 … β^(t-1) has the variance σ² (1 - β)(1 + β^t) / ((1 + β)(1 - β^t)).
    """
    noise = float(np.median(np.abs(np.diff(loss[: until + 1])))) / (0.6745 * sqrt(2))
    decay = beta ** np.arange(1, len(loss) + 1)
    return noise * np.sqrt((1 - beta) * (1 + decay) / ((1 + beta) * (1 - decay)))


def still_falling(curve: LRCurve) -> NoSuggestion:
    """Return the error for a loss that never rose again."""
    return NoSuggestion(
        f"the loss is still falling at the last LR {curve.lr[-1]:g}: raise lr_end",
        Verdict.STILL_FALLING,
    )


def decade_below(curve: LRCurve, lr: float) -> LRRange:
    """Return the decade that ends at ``lr``, which the ramp must have passed."""
    if lr < curve.lr[0]:
        raise NoSuggestion(
            f"the loss rises so early that the maximum would be {lr:.3g}, below the first LR "
            f"{curve.lr[0]:g}: lower lr_start"
        )
    return LRRange.decade_below(lr)


def require_turn(curve: LRCurve, lr: np.ndarray, lowest: int) -> None:
    """Raise NoSuggestion if the loss was still falling when the ramp ended."""
    if lowest == len(lr) - 1 and curve.stop == "completed":
        raise still_falling(curve)
