"""What a range test measures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.measure.ramps import REFERENCE_ITERATIONS
from lrrt_stage.settings import require

__all__ = ["LRCurve", "Stop", "reference_csv"]

SERIES = ("lr", "loss", "probe_loss", "val_loss", "full_val_loss")

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
    probe_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Loss of one fixed batch at the same weights as ``loss``."""
    val_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Validation loss at the same weights as ``loss``, on a sample or on the full set."""
    full_val_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Validation loss on the full set, at the iterations where it was taken; NaN elsewhere."""
    stop: Stop = field(default="completed", kw_only=True)
    epochs: float | None = field(default=None, kw_only=True)
    """Passes over the data that the test took, where the data has a length."""
    reference: LRCurve | None = field(default=None, kw_only=True)
    """What the rule ``robust`` reads in place of this curve, see
    :attr:`lrrt_stage.RangeTestOptions.reference`; None where it reads this one."""

    def __post_init__(self) -> None:
        for name in SERIES:
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
        """Bit-equal learning rates and losses (NaN equals NaN), the same end and reference."""
        if not isinstance(other, LRCurve):
            return NotImplemented
        pairs = [(getattr(self, name), getattr(other, name)) for name in SERIES]
        ours, theirs = ((x.stop, x.epochs, x.reference) for x in (self, other))
        return ours == theirs and all(
            (a is None) == (b is None)
            and (a is None or b is None or np.array_equal(a, b, equal_nan=True))
            for a, b in pairs
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def finite(self) -> LRCurve:
        """The curve up to the first loss that is not finite."""
        invalid = np.flatnonzero(~np.isfinite(self.loss))
        return replace(self[: invalid[0]], reference=self.reference) if invalid.size else self

    def __getitem__(self, part: slice) -> LRCurve:
        """Return a slice of the iterations as a curve, which has no reference."""
        parts: dict[str, Any] = {name: values[part] for name, values in self._series().items()}
        return LRCurve(**parts, stop=self.stop, epochs=self.epochs)

    def to_frame(self, smoothing: Smoothing | None = None) -> pd.DataFrame:
        """Return a row for each iteration.

        The columns are ``iteration, lr, loss, smoothed_loss``, and ``probe_loss``, ``val_loss`` and
        ``full_val_loss`` where they were taken.
        """
        frame = pd.DataFrame(self._series())
        frame.insert(2, "smoothed_loss", (smoothing or Smoothing())(self.loss))
        return frame.rename_axis("iteration").reset_index()

    def to_csv(self, path: str | Path, smoothing: Smoothing | None = None) -> Path:
        """Write :meth:`to_frame` to ``path``; floats are written so that they read back exactly.

        A reference is written beside it, see :func:`reference_csv`; one of an earlier curve there
        is removed.
        """
        self.to_frame(smoothing).to_csv(path, index=False)
        beside = reference_csv(path)
        if self.reference is not None:
            self.reference.to_frame(smoothing).to_csv(beside, index=False)
        else:
            beside.unlink(missing_ok=True)
        return Path(path)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, stop: Stop = "completed", epochs: float | None = None
    ) -> LRCurve:
        """Read what :meth:`to_csv` wrote. The file does not hold ``stop`` and ``epochs``.

        A reference beside it is read too; why that ended is seen from it (what diverged at its
        very last iteration counts as completed).
        """
        # Python's float reads back every digit; pandas' own parser does so only since version 3.
        numbers = dict.fromkeys(SERIES, lambda text: float(text or "nan"))
        frame = pd.read_csv(path, converters=numbers)
        missing = {"lr", "loss"} - set(frame.columns)
        require(not missing, f"{path} has no column {sorted(missing)}: it is not a curve.csv")
        series: dict[str, Any] = {name: frame[name].to_numpy() for name in SERIES if name in frame}
        curve = cls(**series, stop=stop, epochs=epochs)
        beside = reference_csv(path)
        return replace(curve, reference=_reference(beside)) if beside.exists() else curve

    def _series(self) -> dict[str, np.ndarray]:
        """Return the arrays that there are, by name."""
        named = {name: getattr(self, name) for name in SERIES}
        return {name: values for name, values in named.items() if values is not None}


def reference_csv(path: str | Path) -> Path:
    """Return where the reference of the curve in ``path`` is written: ``curve.reference.csv``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.reference{path.suffix}")


def _reference(path: Path) -> LRCurve:
    reference = LRCurve.from_csv(path)
    if len(reference) and not isfinite(reference.loss[-1]):
        return replace(reference, stop="non-finite")
    completed = len(reference) == REFERENCE_ITERATIONS
    return replace(reference, stop="completed" if completed else "diverged")
