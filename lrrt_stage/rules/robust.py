"""The rule ``robust``: a fifth of the learning rate at which the loss rises again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.curve.smoothing import Smoothing, is_finite
from lrrt_stage.errors import NoSuggestion
from lrrt_stage.rules.descent import decade_below, never_fell, require_points, still_falling
from lrrt_stage.rules.registry import rule

__all__ = ["UnimodalFit", "fifth_of_rise", "fit_unimodal", "unimodal_regression"]

PART_OF_RISE = 5.0
"""The suggested maximum is the learning rate of the rise divided by this. Chosen on the development
half of the benchmark, for guarded trainings."""
SIGNIFICANCE = 0.05
"""p-value below which a fall of the loss is not explained by chance."""


def fitted_loss(curve: LRCurve, smoothing: Smoothing) -> tuple[str, np.ndarray]:
    """Return the name and the values, shape ``[n]``, of the fit that the rule reads.

    Between evaluations of the probe the line is straight.
    """
    try:
        fit = fit_unimodal(curve)
    except NoSuggestion:
        fit = UnimodalFit.from_curve(curve)
    name = f"fit to the {'training' if fit.series == 'loss' else 'probe'} loss"
    return name, np.interp(np.arange(len(curve)), fit.iterations, fit.fit - fit.unspecific)


@rule("robust", reads=fitted_loss, pace_decades=0.33, start_decades=0.18)
def fifth_of_rise(curve: LRCurve, smoothing: Smoothing) -> LRRange:
    """The maximum is a fifth of the learning rate at which the loss rises again, the minimum a
    tenth of the maximum. The rule reads the curve that falls once and then rises once and fits the
    loss best: the loss of the probe where there is one, otherwise that of the training batches.

    It reads both losses where the probe does not fall (:func:`fit_unimodal`). What the mean output
    of the probe's examples gains by itself is no gain, since a network that answers alike to all
    of them gains it, too. Losses above that of such an answer are clipped to it, since once the
    network is ruined, the height of the explosion says nothing. The least-squares curve is fitted
    to these losses (:func:`unimodal_regression`), without smoothing. Where it rises is averaged
    over all heights between its floor and the start, so that neither the place of a flat floor nor
    a single level decides. A fifth of that is suggested, since training stays at learning rates
    that the ramp only passes. It is too high for some trainings, so watch them
    (:class:`lrrt_stage.Guard`).
    """
    return decade_below(curve, fit_unimodal(curve).rise / PART_OF_RISE)


@dataclass(frozen=True, eq=False, repr=False)
class UnimodalFit:
    """The least-squares fit that falls and then rises to the losses of a range test.

    Arrays have the shape ``[m]`` of the losses that are fitted.
    """

    series: str
    """Which losses are fitted: ``loss``, those of the training, or ``probe_loss``."""
    iterations: np.ndarray
    """Which iterations of the curve they are of: all, or those where the probe was evaluated. A
    training loss that is not finite counts for the probe, too."""
    lr: np.ndarray
    start: float
    """Loss at the initial weights; with a baseline, that of an answer which is alike for all
    examples."""
    unspecific: np.ndarray
    """What a loss has gained without telling one example from another, or by luck; added to the
    losses before they are fitted."""
    ruined: np.ndarray
    """Whether this loss is at or above ``start``, or this or the training loss is not finite; also
    where the losses are those of the start."""
    clipped: np.ndarray
    """The losses that are fitted: ``start`` where the network is ruined."""
    fit: np.ndarray
    fell: bool
    """Whether the losses fall up to the floor by more than chance explains."""

    @classmethod
    def from_curve(cls, curve: LRCurve, series: str | None = None) -> UnimodalFit:
        """Fit a series of a curve; by default the loss of the probe where there is one.

        What the mean output of the probe gains (``probe_baseline``) is no gain: a network that is
        ruined gains it, too. Where the loss does not fall by more than that, what the initial
        weights tell apart by luck is taken out as well; and where it does not fall then either,
        whatever it gains counts.
        """
        series = series or ("loss" if curve.probe_loss is None else "probe_loss")
        iterations, baseline = np.arange(len(curve)), None
        if series != "loss" and curve.probe_loss is not None:
            evaluated = ~np.isnan(curve.probe_loss)
            if not evaluated.any():
                return cls.from_curve(curve, "loss")
            fitted = evaluated | ~is_finite(curve.loss)
            fitted[: np.argmax(evaluated)] = False
            iterations, curve = np.flatnonzero(fitted), curve[fitted]
            baseline = curve.probe_baseline
        fit_to = partial(cls._fitted, curve, iterations, series)
        if baseline is not None and is_finite(baseline[0]):
            gained = baseline[0] - baseline
            unspecific = np.where(is_finite(gained), gained, 0).clip(0)
            fit = fit_to(unspecific, float(baseline[0]))
            if fit.fell:
                return fit
            # What a new head tells apart by luck goes with its scale, which can hide a fall. So it
            # is taken out where the network tells more apart later than it does by luck.
            specific = np.where(gained >= 0, baseline - getattr(curve, series), 0)
            luck, scale = specific[0], max(float(baseline[0]), unspecific.max())
            if 0 < luck < min(np.nanmax(specific), scale):
                unspecific = unspecific + luck * (1 - unspecific / scale)
                fit = fit_to(unspecific, float(baseline[0]))
                if fit.fell:
                    return fit
        return fit_to(np.zeros(len(curve)))

    @classmethod
    def _fitted(
        cls,
        curve: LRCurve,
        iterations: np.ndarray,
        series: str,
        unspecific: np.ndarray,
        ignorant: float | None = None,
    ) -> UnimodalFit:
        losses, least_fall = getattr(curve, series) + unspecific, 0.0
        if ignorant is not None:
            # Of two float32 losses: what is near their rounding is no fall.
            rounding = 16 * np.finfo(np.float32).eps * max(abs(ignorant), abs(losses[0]))
            least_fall = 8 * rounding
            if rounding > 0:
                losses = np.round(losses / rounding) * rounding
        losses = np.where(is_finite(losses) | np.isnan(losses), losses, np.inf)
        # The probe is always the same batch. The training batches differ, so that
        # the first tenth, whose learning rates have no effect yet, counts as its median.
        first = 1 if series == "probe_loss" else max(5, len(curve) // 10)
        initial = float(np.median(losses[:first]))
        start = initial if ignorant is None else ignorant
        ruined = ~(is_finite(losses) & is_finite(curve.loss) & (losses < start))
        ruined[:first] = True
        clipped = np.where(ruined, start, losses)
        clipped[:first] = min(initial, start)
        fit = unimodal_regression(clipped)
        # Above the start of a baseline, a loss may fall without telling one example from another.
        read = losses if ignorant is None else clipped
        # An evaluation stands for the iterations up to the next one, so that a slow descent does
        # not have to be evaluated often in order to count.
        stands_for = np.diff(iterations, append=iterations[-1:] + 1)
        # The descent ends before the next one: halfway, for all that is known.
        floor = _last_minimum(fit)
        stands_for[floor] = (stands_for[floor] + 1) // 2
        falling = slice(floor + 1)
        fell = bool(is_finite(start)) and _fell(np.repeat(read[falling], stands_for[falling]))
        fell = fell and clipped[0] - fit.min() > least_fall
        return cls(series, iterations, curve.lr, start, unspecific, ruined, clipped, fit, fell)

    @property
    def floor(self) -> int:
        """Index of the last loss on the floor of the fit, among those that are fitted."""
        return _last_minimum(self.fit)

    @property
    def fall(self) -> float:
        """How far the fit falls from its first value to its floor."""
        return float(self.clipped[0] - self.fit.min())

    @property
    def rises(self) -> bool:
        """Whether the fit rises again before the curve ends."""
        return self.floor < len(self.fit) - 1

    @property
    def rise(self) -> float:
        """Learning rate at which the loss rises: the mean of log10(lr) over the heights.

        The last learning rate where the loss does not rise.
        """
        if not self.rises:
            return float(self.lr[-1])
        heights = np.diff(self.fit[self.floor :])
        places = np.log10(self.lr[self.floor :])
        return float(10 ** np.average((places[1:] + places[:-1]) / 2, weights=heights))

    @property
    def recovered(self) -> float:
        """Share of the fall that the rise takes back, 0 to 1."""
        return min(1.0, float((self.fit[-1] - self.fit[self.floor]) / self.fall))


def fit_unimodal(curve: LRCurve) -> UnimodalFit:
    """Return the fit to the loss of the probe where there is one, otherwise to the training loss.

    The few examples of a probe may differ from the others: where learning is slow, the first
    steps may raise their loss. So a descent of the training loss alone is enough. In that case
    the later of the two rises counts: noise can imitate the early end of a weak descent, but it
    cannot outlast the explosion.

    Raises
    ------
    NoSuggestion
        If there are too few points, the loss never fell by more than chance explains, or it never
        rose again.
    """
    require_points(curve)
    fit = UnimodalFit.from_curve(curve)
    if not fit.fell:
        training = UnimodalFit.from_curve(curve, "loss")
        if not is_finite(fit.start) or not training.fell:
            raise never_fell(curve, fit.start, float(fit.fit.min()))
        probe_rises_later = fit.rises and fit.rise > training.rise
        fit = fit if probe_rises_later else training
    if not fit.rises:
        if curve.stop == "completed":
            raise still_falling(curve)
        if curve.stop == "interrupted":
            raise NoSuggestion("the test was interrupted before the loss rose: run it again")
    return fit


def unimodal_regression(values: np.ndarray) -> np.ndarray:
    """Return the least-squares fit that falls and then rises, computed in O(n).

    Of all sequences that never rise before some index and never fall after it, this is the one
    with the least sum of squared differences to the finite ``values [n]``. No bandwidth needs to be
    chosen, noise is averaged away where there is no trend, and an explosion is not smeared over
    earlier losses.

    Q. F. Stout, *Unimodal regression via prefix isotonic regression*, Computational Statistics &
    Data Analysis 53 (2008): given the errors of the monotone fit to every prefix and to every
    suffix, the best turning point is the least of n + 1 sums.

    Examples
    --------
    >>> unimodal_regression(np.array([3.0, 1.0, 2.0, 0.0, 4.0])).tolist()
    [3.0, 1.5, 1.5, 0.0, 4.0]
    """
    falling = -np.asarray(values, dtype=np.float64)
    # A rise read backwards is a fall.
    (left, left_errors), (right, right_errors) = _isotonic(falling), _isotonic(falling[::-1])
    turn = int(np.argmin(left_errors + right_errors[::-1]))
    return -np.concatenate([_levels(left[turn]), _levels(right[len(falling) - turn])[::-1]])


_Block = tuple[float, int, float, "_Block | None"]
"""Neighbours with the same fitted value: their mean, number, and squared error, and the block
before them. A tuple, since a long curve has many."""


def _isotonic(values: np.ndarray) -> tuple[list[_Block | None], np.ndarray]:
    """Return the non-decreasing least-squares fit to each prefix, and its squared error.

    Both have n + 1 items for ``values [n]``; a fit is its last block. By pooling adjacent violators
    (Ayer et al. 1955): a value below the previous block joins it, and the joint block takes its
    mean. No block is changed, so that the fits to all prefixes share theirs.
    """
    block: _Block | None = None
    total = 0.0
    fits, errors = [block], [total]
    for mean in values.tolist():
        size, error = 1, 0.0
        while block is not None and block[0] > mean:
            block_mean, block_size, block_error, block = block
            joint_size = block_size + size
            total -= block_error
            error += block_error + (block_mean - mean) ** 2 * block_size * size / joint_size
            mean = (block_mean * block_size + mean * size) / joint_size
            size = joint_size
        block = (mean, size, error, block)
        total += error
        fits.append(block)
        errors.append(total)
    return fits, np.array(errors)


def _levels(block: _Block | None) -> np.ndarray:
    """Return the fitted value at every point of the fit that ends with ``block``, in order."""
    backwards: list[float] = []
    while block is not None:
        mean, size, _, block = block
        backwards += [mean] * size
    return np.array(backwards[::-1])


def _last_minimum(fit: np.ndarray) -> int:
    return int(np.flatnonzero(fit == fit.min())[-1])


def _fell(losses: np.ndarray) -> bool:
    """Return whether later losses are lower than earlier ones by more than chance explains.

    The most significant of Student's t-tests between the ranks before and after each split, with
    Bonferroni's correction for the number of splits. Ranks, so that a single extreme loss does
    not decide.
    """
    from scipy.special import stdtr  # takes a tenth of a second to import

    n = len(losses)
    if n < 3:
        return False
    ranks = _ranks(np.where(np.isnan(losses), np.inf, losses))
    before = np.arange(1, n)
    after = n - before
    sums, squares = ranks.cumsum(), (ranks**2).cumsum()
    early, late = sums[:-1] / before, (sums[-1] - sums[:-1]) / after
    within = squares[-1] - before * early**2 - after * late**2
    # Without noise any fall is significant; rounding can make the remainder negative.
    error = np.sqrt(np.maximum(within, 0) / (n - 2) * (1 / before + 1 / after))
    with np.errstate(over="ignore"):
        largest = np.max((early - late) / np.maximum(error, np.finfo(float).tiny), initial=0)
    return bool(stdtr(n - 2, -largest) * (n - 1) < SIGNIFICANCE)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of every value among them, from 1 on; equal ones share their mean rank."""
    ordered = np.sort(values)
    below, not_above = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    return (below + not_above + 1) / 2
