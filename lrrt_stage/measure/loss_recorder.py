"""What a range test records while it runs, and whether it should stop."""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch
from torch import Tensor

from lrrt_stage.curve.lr_curve import LRCurve, Stop
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import LRRTError
from lrrt_stage.measure.step import BatchStream

__all__ = ["CHECK_EVERY", "Record"]

CHECK_EVERY = 10
"""Iterations between two looks at the losses: each look makes the host wait for the device. What
a curve holds does not depend on it, since iterations after the stop are cut off."""


class Record:
    """The losses, kept on the device and looked at every :data:`CHECK_EVERY` iterations."""

    def __init__(self, lr: np.ndarray, stop_multiple: float | None, beta: float) -> None:
        self.lr, self.stop_multiple = lr, stop_multiple
        self.average = Smoothing("corrected", beta)
        self.names: list[str] = []
        self.on_device: list[Tensor] = []
        self.blocks: list[np.ndarray] = []
        self.taken = 0
        self.length: int | None = None
        self.stop: Stop = "completed"

    def add(self, loss: Tensor, **others: Tensor) -> None:
        """Keep the losses of an iteration, scalars on the device; the same ones at every call."""
        self.names = list(others)
        dtype = torch.promote_types(loss.dtype, torch.float32)
        self.on_device.append(torch.stack([value.to(dtype) for value in (loss, *others.values())]))
        self.taken += 1

    @property
    def read(self) -> np.ndarray:
        """What was read: the training loss, then the others; one column per iteration."""
        return np.concatenate(self.blocks, axis=1) if self.blocks else np.empty((1, 0))

    def should_stop(self) -> bool:
        """Tell whether the stop rule has ended the test; looks only now and then."""
        if len(self.on_device) == CHECK_EVERY or self.taken == len(self.lr):
            self._read()
            self._look()
        return self.length is not None

    def curve(self, stream: BatchStream, stop: Stop | None = None) -> LRCurve:
        """Return what was recorded up to the stop; ``stop`` says why, if not the stop rule."""
        if self.on_device:
            self._read()
        losses, *others = self.read[:, : self.length]
        if len(losses) and not isfinite(losses[0]):
            raise LRRTError(
                f"the loss of the first batch is {losses[0]} at lr={self.lr[0]:g}: check the data "
                "for NaN or infinity, the initial weights, and the loss function"
            )
        series = dict(zip(self.names, others, strict=True))
        probe = series.get("probe_loss")
        if probe is not None and len(probe) and not isfinite(probe[0]):
            raise LRRTError(
                f"the loss of the probe is {probe[0]} at the initial weights: check its examples "
                "for NaN or infinity"
            )
        return LRCurve(
            self.lr[: len(losses)],
            losses,
            **series,
            stop=stop or self.stop,
            epochs=stream.epochs(len(losses)),
        )

    def _read(self) -> None:
        block = torch.stack(self.on_device, dim=1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every rank must see the same losses, or one stops while the others wait for it.
            torch.distributed.all_reduce(block)
            block /= torch.distributed.get_world_size()
        # An explicit copy, so that the read is one and shows as one on every device.
        self.blocks.append(block.to("cpu", copy=True).double().numpy())
        self.on_device = []

    def _look(self) -> None:
        losses = self.read[0]
        invalid = np.flatnonzero(~np.isfinite(losses))
        finite = losses[: invalid[0]] if invalid.size else losses
        if self.stop_multiple is not None and len(finite):
            smoothed = self.average(finite)
            best = np.minimum.accumulate(smoothed)
            passed = np.flatnonzero(smoothed - best > (self.stop_multiple - 1) * np.abs(best))
            if passed.size:
                self.length, self.stop = int(passed[0]) + 1, "diverged"
                return
        if invalid.size:
            self.length, self.stop = int(invalid[0]) + 1, "non-finite"
