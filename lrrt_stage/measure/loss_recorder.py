"""The losses that a range test records while it runs, and the rule that stops it early."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrrt_stage.curve.lr_curve import LRCurve, Stop
from lrrt_stage.curve.smoothing import Smoothing, finite_length, running_quantile
from lrrt_stage.errors import LRRTError
from lrrt_stage.state.device import is_distributed, summed_over_ranks

__all__ = ["CHECK_EVERY", "LossRecorder", "read_losses"]

CHECK_EVERY = 10
"""Iterations between two reads of the losses. Each read makes the host wait for the device. The
curve does not depend on this number, since iterations after the stop are cut off."""
MIN_START = 5
"""Losses that the start is estimated from, if a tenth of the ramp has fewer."""


class LossRecorder:
    """Keeps the losses on the device, and reads them every :data:`CHECK_EVERY` iterations.

    The test stops once the smoothed loss has risen from its minimum by more than
    ``stop_multiple - 1`` times the spread of the losses so far. The start is their median in the
    first tenth of the ramp, where the learning rate is too small to change them, and the spread is
    the 90 % quantile of their distances to the start. So neither a constant added to the loss nor
    its unit matters.

    The average is bias-corrected, and begins with the start in place of the losses of the first
    tenth, so that an extreme batch there counts for nothing. Two losses in a row have to have
    risen as far as the average, so that a single extreme batch does not stop the test either.
    There is no verdict where the spread is zero: then all that changes is rounding.
    """

    def __init__(self, lr: np.ndarray, stop_multiple: float | None, beta: float) -> None:
        self.lr, self.stop_multiple = lr, stop_multiple
        self.first = max(MIN_START, len(lr) // 10)
        self.average = Smoothing("corrected", beta)
        self.series = {"loss": np.full(len(lr), np.nan)}
        self.on_device: dict[tuple[str, int], Tensor] = {}
        self.count = 0  # of the iterations
        self.known = 0  # of those that were read
        self.length: int | None = None  # of the curve, once the stop rule has ended it
        self.stop: Stop = "completed"

    def add(self, loss: Tensor, **evaluations: Tensor) -> None:
        """Record the training loss of an iteration and its evaluations, scalars on the device.

        Evaluations are series of an :class:`LRCurve` by name; one that is not given is NaN.
        """
        for name, value in {"loss": loss, **evaluations}.items():
            dtype = torch.promote_types(value.dtype, torch.float32)
            # A copy, since a compiled model may use its memory again.
            self.on_device[name, self.count] = value.to(dtype, copy=True)
        self.count += 1

    def should_stop(self) -> bool:
        """Return whether the stop rule ends the test; the losses are read only now and then."""
        # Rarer in a long test, where a check reads a long curve.
        due = max(CHECK_EVERY, self.count // 20)
        if self.count - self.known >= due or self.count == len(self.lr):
            self._read()
            self._apply_stop_rule()
        return self.length is not None

    def curve(self, stop: Stop | None = None) -> LRCurve:
        """Return the recorded curve; ``stop`` says why it ends if that was not the stop rule.

        Where this rank is the only one that was stopped, or has failed, the curve ends with the
        losses that it has read together with the others.
        """
        if stop is None or not is_distributed():
            self._read()
        series: dict[str, Any] = {
            name: values[: self.known][: self.length] for name, values in self.series.items()
        }
        losses, probe = series["loss"], series.get("probe_loss")
        if len(losses) and not isfinite(losses[0]):
            raise LRRTError(
                f"the loss of the first batch is {losses[0]} at lr={self.lr[0]:g}: check the data "
                "for NaN or infinity, the initial weights, and the loss function"
            )
        if np.isnan(series.get("probe_baseline", np.zeros(1))).all():
            series.pop("probe_baseline", None)
        if probe is not None and len(probe) and not isfinite(probe[0]):
            raise LRRTError(
                "the loss of the probe is not finite at the initial weights: check its examples "
                "for NaN or infinity"
            )
        return LRCurve(self.lr[: len(losses)], stop=stop or self.stop, **series)

    def _read(self) -> None:
        if self.on_device:
            values = _read([*self.on_device.values()])
            for (name, iteration), value in zip(self.on_device, values, strict=True):
                if name not in self.series:
                    self.series[name] = np.full(len(self.lr), np.nan)
                self.series[name][iteration] = value
        self.on_device, self.known = {}, self.count

    def _apply_stop_rule(self) -> None:
        losses = self.series["loss"][: self.known]
        finite = losses[: finite_length(losses)]
        first = self.first
        if self.stop_multiple is not None and len(finite) > first:
            start = np.median(finite[:first])
            spread = running_quantile(np.abs(finite - start), 0.9)
            smoothed = self.average(np.r_[np.full(first, start), finite[first:]])
            lower = np.minimum(smoothed, np.minimum(finite, np.roll(finite, 1)))
            rise = lower - np.minimum.accumulate(smoothed)
            diverged = (rise > (self.stop_multiple - 1) * spread) & (spread > 0)
            exceeded = first + np.flatnonzero(diverged[first:])
            if exceeded.size:
                self.length, self.stop = int(exceeded[0]) + 1, "diverged"
                return
        if len(finite) < len(losses):
            self.length, self.stop = len(finite) + 1, "non-finite"


def read_losses(losses: Sequence[Tensor | float]) -> list[float]:
    """Return losses that may be on a device, as numbers; the device is waited for once."""
    on_device = [loss for loss in losses if isinstance(loss, Tensor)]
    if len(on_device) < len(losses) or not losses:
        return [*map(float, losses)]
    return _read(on_device)


def _read(losses: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors of one number each, in float32 or better."""
    dtype = max((loss.dtype for loss in losses), key=lambda dtype: dtype.itemsize)
    dtype = torch.promote_types(dtype, torch.float32)
    block = torch.stack([loss.reshape(()).to(dtype) for loss in losses])
    if is_distributed():
        # Every rank must see the same losses; otherwise one rank stops and the others wait.
        block = summed_over_ranks(block) / torch.distributed.get_world_size()
    # An explicit copy, so that this is one read, and visible as one, on every device.
    return block.to("cpu", copy=True).double().tolist()
