"""What a range test measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from lrrt_stage.settings import require
from lrrt_stage.smoothing import Smoothing

__all__ = ["LRCurve", "Stop"]

Stop = Literal["completed", "diverged", "non-finite", "interrupted"]
"""Why a curve ends: the ramp was finished; the smoothed loss passed a multiple of its best; a
loss was NaN or infinite (it is the curve's last); the user interrupted."""


@dataclass(frozen=True, eq=False)
class LRCurve:
    """The losses of a range test.

    ``loss[i]`` is the loss of batch ``i`` at the weights *before* step ``i``; ``lr[i]`` is the
    learning rate that step ``i`` then uses. All arrays are read-only float64 of shape ``[n]``.
    """

    lr: np.ndarray
    loss: np.ndarray
    val_loss: np.ndarray | None = field(default=None, kw_only=True)
    stop: Stop = field(default="completed", kw_only=True)
    epochs: float | None = field(default=None, kw_only=True)
    """Passes over the data that the test took, where the data has a length."""

    def __post_init__(self) -> None:
        for name in ("lr", "loss", "val_loss"):
            value = getattr(self, name)
            if value is None:
                continue
            array = np.array(value, dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            require(
                array.shape == (len(self.lr),),
                f"{name} has shape {array.shape}, lr has {len(self.lr)} values: "
                "one value per iteration is needed",
            )
        require(self.stop in get_args(Stop), f"stop={self.stop!r} is not one of {get_args(Stop)}")

    def __len__(self) -> int:
        return len(self.lr)

    def __eq__(self, other: object) -> bool:
        """Bit-equal learning rates and losses (NaN equals NaN), and the same end."""
        if not isinstance(other, LRCurve):
            return NotImplemented
        pairs = [(self.lr, other.lr), (self.loss, other.loss), (self.val_loss, other.val_loss)]
        return (self.stop, self.epochs) == (other.stop, other.epochs) and all(
            (a is None) == (b is None)
            and (a is None or b is None or np.array_equal(a, b, equal_nan=True))
            for a, b in pairs
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def finite(self) -> LRCurve:
        """The curve up to the first loss that is not finite."""
        invalid = np.flatnonzero(~np.isfinite(self.loss))
        return self[: invalid[0]] if invalid.size else self

    def __getitem__(self, part: slice) -> LRCurve:
        """Return a slice of the iterations as a curve."""
        val_loss = None if self.val_loss is None else self.val_loss[part]
        return LRCurve(
            self.lr[part], self.loss[part], val_loss=val_loss, stop=self.stop, epochs=self.epochs
        )

    def to_frame(self, smoothing: Smoothing | None = None) -> pd.DataFrame:
        """Return columns ``iteration, lr, loss, smoothed_loss[, val_loss]``, one row each."""
        smoothed = (smoothing or Smoothing())(self.loss)
        columns = {"lr": self.lr, "loss": self.loss, "smoothed_loss": smoothed}
        if self.val_loss is not None:
            columns["val_loss"] = self.val_loss
        return pd.DataFrame(columns).rename_axis("iteration").reset_index()

    def to_csv(self, path: str | Path, smoothing: Smoothing | None = None) -> Path:
        """Write :meth:`to_frame` to ``path``; floats are written so that they read back exactly."""
        self.to_frame(smoothing).to_csv(path, index=False)
        return Path(path)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, stop: Stop = "completed", epochs: float | None = None
    ) -> LRCurve:
        """Read what :meth:`to_csv` wrote. The file does not hold ``stop`` and ``epochs``."""
        # Python's float reads back every digit; pandas' own parser does so only since version 3.
        numbers = dict.fromkeys(("lr", "loss", "val_loss"), lambda text: float(text or "nan"))
        frame = pd.read_csv(path, converters=numbers)
        missing = {"lr", "loss"} - set(frame.columns)
        require(not missing, f"{path} has no column {sorted(missing)}: it is not a curve.csv")
        val_loss = frame["val_loss"].to_numpy() if "val_loss" in frame else None
        return cls(
            frame["lr"].to_numpy(),
            frame["loss"].to_numpy(),
            val_loss=val_loss,
            stop=stop,
            epochs=epochs,
        )
