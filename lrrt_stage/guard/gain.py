"""What a range test shows a network to gain, and when a training has lost it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.errors import LRRTError
from lrrt_stage.rules.robust import UnimodalFit

__all__ = ["Gain", "shows_gain"]

RECENT = 20
"""Losses whose median is compared, at least: two reads of ten."""
PRECISION = 1 / 15
"""Standard error of that median at most, as a share of the change that is looked for: the highest
and the lowest of many medians are about five standard errors apart, which is less than half."""


@dataclass(frozen=True)
class Gain:
    """The fall of the loss in a range test, and what it took.

    A training that takes as many steps with learning rates in the range should gain as much: the
    range test spends most of its steps at learning rates that are far too low.
    """

    start: float
    """Training loss at the initial weights: the median over the first tenth of the ramp."""
    fall: float
    """How far the loss fell. Of the probe, whose examples are always the same, and the training the
    one that fell less."""
    chance: float
    """Training loss that an answer reached which is alike for all examples; the start where there
    is no baseline of the probe."""
    steps: int
    """Steps until the loss was lowest."""
    distance: float
    """Sum of the learning rates of these steps."""
    losses: int
    """How many training losses have a median that is exact enough for the fall, given their
    noise."""
    clear: float
    """The least change, not less than the fall, for which the median of
    :data:`RECENT` losses is exact enough."""
    error: float
    """Standard error of the median of that many (:attr:`losses`) training losses."""

    @classmethod
    def from_curve(cls, curve: LRCurve) -> Gain:
        """Read the gain from the curve of a range test.

        Raises
        ------
        LRRTError
            If the loss did not fall by more than its noise explains.
        """
        training = UnimodalFit.from_curve(curve, "loss")
        fits = [training] if curve.probe_loss is None else [UnimodalFit.from_curve(curve), training]
        falls = {fit.series: fit.fall for fit in fits if fit.fell and fit.fall > 0}
        if not falls:
            raise LRRTError(
                "the range test shows no fall of the loss by which a ruined training could be told "
                "from others: check data and loss, or train with attempts=1"
            )
        fit = next(fit for fit in fits if fit.series in falls)
        losses = curve.finite.loss
        before = losses[: max(training.floor, RECENT) + 1]
        # For normal noise σ, neighbours differ by 0.6745 √2 σ in the median, and the median of n
        # losses has the standard error 1.2533 σ / √n.
        noise = float(np.median(np.abs(np.diff(before)))) / (0.6745 * 2**0.5)
        # Dropout, which is off for the probe, can make the training loss fall less.
        fall = min(falls.values())
        if fit is training:
            # The lowest of many noisy losses is lower than what can be kept.
            windows = np.lib.stride_tricks.sliding_window_view(losses, min(RECENT, len(losses)))
            fall = max(fit.start - float(np.median(windows, axis=1).min()), fall / RECENT)
        enough = max(ceil((1.2533 * noise / (PRECISION * fall)) ** 2), RECENT)
        error = 1.2533 * noise / enough**0.5
        clear = 1.2533 * noise / (PRECISION * RECENT**0.5)
        done = int(fit.iterations[fit.floor]) + 1
        distance = float(curve.lr[:done].sum())
        chance = training.start - float(fit.unspecific[fit.floor] - fit.unspecific[0])
        return cls(training.start, fall, chance, done, distance, enough, max(clear, fall), error)


def shows_gain(curve: LRCurve) -> bool:
    """Return whether the loss of a range test fell, so that a training can be compared with it."""
    try:
        Gain.from_curve(curve)
    except LRRTError:
        return False
    return True
