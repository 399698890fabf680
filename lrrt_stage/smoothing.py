"""The three exponential averages of a noisy loss (article, Fig 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrrt_stage.settings import check_choices, require, setting

__all__ = ["AVERAGES", "Smoothing"]

AVERAGES = ("biased", "corrected", "from-first")


@dataclass(frozen=True)
class Smoothing:
    """An exponential moving average with factor β; L_t is the raw loss, t = 1, 2, …

    - ``biased``: S_0 = 0, S_t = β S_{t-1} + (1-β) L_t
    - ``corrected``: the same, divided by 1 - β^t (the default of fastai and Keras LR finders)
    - ``from-first``: S_1 = L_1, S_t = β S_{t-1} + (1-β) L_t, without correction

    All three lag behind the raw loss, which moves a suggested maximum up.

    Examples
    --------
    >>> Smoothing("corrected", beta=0.5)([4.0, 1.0]).tolist()
    [4.0, 2.0]
    """

    average: str = setting(
        "corrected", "Exponential average that suggestions are read from.", choices=AVERAGES
    )
    beta: float = setting(0.98, "Smoothing factor of the average, 0 (raw loss) to below 1.")

    def __post_init__(self) -> None:
        check_choices(self)
        require(0 <= self.beta < 1, f"beta={self.beta} is outside [0, 1): try 0.98")

    def __call__(self, loss: np.ndarray | list[float]) -> np.ndarray:
        """Return the average of ``loss``, same shape ``[n]``; values from a NaN on are NaN."""
        raw = np.asarray(loss, dtype=np.float64)
        # pandas' adjust=True is the bias-corrected average, adjust=False the one from the first
        # value; the biased one is the corrected one with its correction taken back.
        ewm = pd.Series(raw).ewm(alpha=1 - self.beta, adjust=self.average != "from-first")
        smoothed = ewm.mean().to_numpy(copy=True)
        if self.average == "biased":
            smoothed *= 1 - self.beta ** np.arange(1, len(raw) + 1)
        invalid = np.flatnonzero(~np.isfinite(raw))
        if invalid.size:
            smoothed[invalid[0] :] = np.nan
        return smoothed
