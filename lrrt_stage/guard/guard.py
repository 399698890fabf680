"""Attempts at a training, each with lower learning rates than the one before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf, isfinite

import numpy as np
from torch import Tensor

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.errors import LRRTError
from lrrt_stage.guard import ATTEMPTS, MOST_ATTEMPTS
from lrrt_stage.guard.gain import RECENT, Gain
from lrrt_stage.measure.loss_recorder import CHECK_EVERY, read_losses
from lrrt_stage.settings import require, require_kind

__all__ = ["Attempt", "AttemptsSpent", "Guard"]

NARROWER = 3.0
"""The next attempt has learning rates that are lower by this factor."""
RARER = 100
"""In a long training losses are read after each hundredth of the steps so far."""


class AttemptsSpent(LRRTError):
    """Every attempt at a training was lost."""


class Attempt:
    """One attempt at a training, watched by its losses.

    The median of the latest losses is compared with the fall that the range test showed
    (:class:`~lrrt_stage.guard.gain.Gain`). The attempt is lost

    - at a loss that is not finite
    - if the loss is above its start by the whole fall
    - if it has given back three quarters of what it had gained, once that was more than the fall
    - if it has not gained half of the fall, or no longer, after as many steps as the range test
      took for all of it, over the same distance (the sum of the learning rates); two standard
      errors of the median are allowed for

    Enough losses are taken for their noise to be small against the fall. Without a ``gain`` only
    losses that are not finite count.
    """

    def __init__(self, number: int, lr_range: LRRange, gain: Gain | None = None) -> None:
        self.number, self.range, self.gain = number, lr_range, gain
        self.reason = ""
        """Why the attempt is lost; empty while it is not."""
        self.steps = 0
        """Losses that were read."""
        self._unread: list[tuple[Tensor | float, float]] = []
        self._losses: deque[float] = deque(maxlen=gain.losses if gain else 1)
        self._distance, self._due, self._lowest = 0.0, 0, inf

    def __repr__(self) -> str:
        return f"Attempt({self.number}, {self.range}{f', lost: {self.reason}' * self.is_lost})"

    @property
    def is_lost(self) -> bool:
        """Whether the training is to start again."""
        return self.reason != ""

    def watch(self, loss: Tensor | float, lr: float | None = None) -> bool:
        """Take the training loss of a step, and return whether the attempt is lost.

        Parameters
        ----------
        loss
            A scalar. It may stay on the device: losses are read every ten steps, and more rarely in
            a long training. Under ``torch.distributed`` every rank has to pass its own, as a
            tensor; they are averaged.
        lr
            Learning rate of the step, the largest of the parameter groups. None: the minimum of the
            range counts, so that a training that never gains is noticed later.
        """
        loss = loss.detach() if isinstance(loss, Tensor) else float(loss)
        self._unread.append((loss, self.range.min if lr is None else lr))
        if not self.is_lost and len(self._unread) >= max(CHECK_EVERY, self.steps // RARER):
            self.read()
        return self.is_lost

    def read(self) -> bool:
        """Read the losses that are still on the device, and return whether the attempt is lost."""
        unread, self._unread = self._unread, []
        losses = read_losses([loss for loss, _ in unread])
        for loss, (_, lr) in zip(losses, unread, strict=True):
            self.steps += 1
            self._losses.append(loss)
            self._distance += lr
            if self.gain is not None and self.steps > self.gain.steps:
                self._due += self._distance > self.gain.distance
        if not self.is_lost:
            self.reason = self._judged(losses)
        return self.is_lost

    def lose(self, reason: str) -> None:
        """Give the attempt up for a reason of your own, such as a validation loss of NaN."""
        self.reason = reason

    def _judged(self, losses: list[float]) -> str:
        """Return why the attempt is lost; empty if it is not."""
        for index, loss in enumerate(losses):
            if not isfinite(loss):
                return f"the loss was {loss} at step {self.steps - len(losses) + index + 1}"
        gain, kept = self.gain, [*self._losses]
        if gain is None or len(kept) < RECENT:
            return ""
        recent = float(np.median(kept[-RECENT:]))
        self._lowest = min(self._lowest, recent)
        gained, best = gain.start - recent, gain.start - self._lowest
        if gained < -gain.clear and best - gained > 2 * gain.clear:
            return f"at step {self.steps} the loss was {recent:.3g}, above its start"
        if best > gain.clear and gained < best / 4:
            return f"at step {self.steps} the loss was {recent:.3g} again, after {self._lowest:.3g}"
        if len(kept) < gain.losses or self._due < gain.losses / 2:
            return ""
        level = float(np.median(kept))
        if gain.chance - level < gain.fall / 2 - 2 * gain.error:
            return (
                f"at step {self.steps} the loss was {level:.3g}, less than half of the way that it "
                f"fell in {gain.steps} steps of the range test"
            )
        return ""


class Guard:
    """Attempts at a training: all from the same weights, each with a third of the learning rates.

    Iterate over it, and train in every iteration. A next one follows only if the attempt was lost.

    Parameters
    ----------
    curve
        The range test of the initial weights, which shows what the loss can gain.
    lr_range
        The range of the first attempt.
    attempts
        How many there are at most, from 1 to 4.

    Examples
    --------
    >>> for attempt in Guard(curve, lr_range):                   # doctest: +SKIP
    ...     model, optimizer = build()  # from the same weights
    ...     schedule = OneCycleLR(optimizer, attempt.range.max, total_steps=steps)
    ...     for batch in batches:
    ...         lr = schedule.get_last_lr()[0]
    ...         loss = take_step(model, optimizer, batch)
    ...         schedule.step()
    ...         if attempt.watch(loss, lr):
    ...             break

    Raises
    ------
    LRRTError
        If the curve shows no fall of the loss.
    AttemptsSpent
        By the iteration, after the last attempt was lost.
    """

    def __init__(self, curve: LRCurve, lr_range: LRRange, attempts: int = ATTEMPTS) -> None:
        require_kind(isinstance(lr_range, LRRange), "lr_range", lr_range, "pass LRRange(…, …)")
        counted = isinstance(attempts, int) and 1 <= attempts <= MOST_ATTEMPTS
        require(counted, f"attempts={attempts!r} is not from 1 to {MOST_ATTEMPTS}")
        self.gain, self.range, self.most = Gain.from_curve(curve), lr_range, attempts
        self.attempts: list[Attempt] = []
        """Those that were begun, in their order; the last one counts."""

    def __iter__(self) -> Iterator[Attempt]:
        """Begin anew with the first attempt."""
        self.attempts = []
        for number in range(self.most):
            factor = NARROWER**number
            lower = LRRange(self.range.min / factor, self.range.max / factor)
            attempt = Attempt(number + 1, lower if number else self.range, self.gain)
            self.attempts.append(attempt)
            yield attempt
            if not attempt.read():
                return
        last, n = self.attempts[-1], self.most
        which = "the training was lost" if n == 1 else f"all {n} attempts were lost, the last one"
        raise AttemptsSpent(
            f"{which} with maximum LR {last.range.max:.3g} ({last.reason}): check the data and the "
            "loss, begin with lower learning rates, or do not watch the training (attempts=1)"
        )
