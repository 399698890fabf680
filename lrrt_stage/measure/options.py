"""The options of a range test: its learning rates, when it stops early, and how a step is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lrrt_stage.measure.ramps import RAMPS, epoch_length, ramp
from lrrt_stage.settings import Options, require, setting

__all__ = ["RangeTestOptions", "StepOptions"]

MIN_ITERATIONS = 10
MAX_ITERATIONS = 10**7
MIN_EVALUATIONS = 15
"""Evaluations of the probe, except in a ramp with fewer iterations. With 17 of 100, no suggestion
of the benchmark that reads as clear is off by a factor of two; with 11, one in seven is."""
MIN_EPOCH_ITERATIONS = 100
"""Iterations of a range test of one epoch whose data set has fewer batches: it is reshuffled."""
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class RangeTestOptions(Options):
    """The learning rates of a range test, and when it stops early."""

    lr_start: float = setting(1e-7, "First learning rate.", above=0)
    lr_end: float = setting(100.0, "Last learning rate.", above=0)
    ramp: str = setting("exponential", "How the learning rate grows.", choices=RAMPS)
    iterations: int | Literal["epoch"] = setting(
        100,
        "Optimizer steps; epoch: one epoch, but at least 100 (the data is reshuffled).",
        minimum=MIN_ITERATIONS,
        maximum=MAX_ITERATIONS,
    )
    stop_multiple: float | None = setting(
        4.0,
        "Stop when the smoothed loss has risen from its minimum by this multiple, less one, of the "
        "spread of the losses so far; none: never.",
        above=1,
    )
    probe_every: int | None = setting(
        None,
        "Iterations from one evaluation of the probe to the next, at most a fifteenth of the ramp; "
        "none: 6, then 3, and 2 in the last two fifths of the ramp; more with small batches and in "
        "a long ramp, fewer in a short one, and 1 in a linear one.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.lr_start < self.lr_end,
            f"lr_start={self.lr_start:g} is not below lr_end={self.lr_end:g}: "
            "lower lr_start or raise lr_end",
        )
        fewest = MIN_EPOCH_ITERATIONS if self.iterations == "epoch" else self.iterations
        few = ", which an epoch may have" if self.iterations == "epoch" else ""
        largest = max(1, fewest // MIN_EVALUATIONS)
        require(
            self.probe_every is None or self.probe_every <= largest,
            f"probe_every={self.probe_every} leaves too few evaluations of the probe in "
            f"{fewest} iterations{few}, to see where its loss rises: give {largest} at most",
        )

    def iterations_for(self, batches: Iterable[Any], accumulate: int) -> int:
        """Return the number of optimizer steps; each takes ``accumulate`` of the ``batches``."""
        if self.iterations != "epoch":
            return self.iterations
        return max(epoch_length(batches) // accumulate, MIN_EPOCH_ITERATIONS)

    def learning_rates(self, batches: Iterable[Any], accumulate: int) -> np.ndarray:
        """Return the learning rate of every iteration, shape ``[iterations]``."""
        iterations = self.iterations_for(batches, accumulate)
        return ramp(self.lr_start, self.lr_end, iterations, self.ramp)


@dataclass(frozen=True)
class StepOptions(Options):
    """How a step is taken. The training after a range test must use the same options.

    With ``precision="fp16"`` the loss is scaled, and a step whose gradients overflow is skipped.
    An optimizer made with ``fused=True`` checks for overflow on the device; with any other one,
    ``torch.amp.GradScaler`` makes the host wait for the device at every step.
    """

    accumulate: int = setting(1, "Batches whose gradients are accumulated for one step.", minimum=1)
    clip_norm: float | None = setting(
        None, "Clip the gradient's global norm to this; none: off.", above=0
    )
    precision: str = setting(
        "fp32", "Arithmetic: fp32, or autocast to bf16 or fp16.", choices=PRECISIONS
    )
    channels_last: bool = setting(False, "Lay images and weights out channels last.")
