"""The curve that a range test measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lrrt_stage.curve.smoothing import Smoothing, finite_length
from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.files import replacing
from lrrt_stage.settings import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LRCurve", "Stop"]

SERIES = ("lr", "loss", "probe_loss", "probe_baseline", "val_loss", "full_val_loss")

Stop = Literal["completed", "diverged", "non-finite", "interrupted", "failed"]
"""Why a curve ends: the ramp was completed; the smoothed loss rose by a multiple of the
spread of the losses; a loss was NaN or infinite, and is the last of the curve; the user interrupted
the test; an error ended it."""


@dataclass(frozen=True, eq=False, repr=False)
class LRCurve:
    """The losses of a range test.

    ``loss[i]`` is the loss of batch ``i`` at the weights *before* step ``i``; ``lr[i]`` is the
    learning rate that step ``i`` then uses. All arrays are read-only float64 of shape ``[n]``.
    """

    lr: np.ndarray
    loss: np.ndarray
    probe_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Loss of one fixed batch at the same weights as ``loss``. NaN where it was not evaluated; if
    the loss was no number, it is infinite here."""
    probe_baseline: np.ndarray | None = field(default=None, kw_only=True)
    """Loss of that batch if each of its examples got the mean of the model's outputs for them: what
    an answer gains that tells no example from another. NaN where it was not evaluated."""
    val_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Validation loss at the same weights as ``loss``, on a sample or on the full set."""
    full_val_loss: np.ndarray | None = field(default=None, kw_only=True)
    """Validation loss on the full set, at the iterations where it was evaluated; NaN elsewhere."""
    stop: Stop = field(default="completed", kw_only=True)
    epochs: float | None = field(default=None, kw_only=True)
    """Passes over the training data that the test took, where the data has a length."""

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

    def __repr__(self) -> str:
        ends = f"lr {self.lr[0]:.3g} to {self.lr[-1]:.3g}, " if len(self) else ""
        return f"LRCurve({len(self)} iterations, {ends}{self.stop})"

    def __eq__(self, other: object) -> bool:
        """Bit-equal series (NaN equals NaN), the same stop, and the same number of epochs."""
        if not isinstance(other, LRCurve):
            return NotImplemented
        ours, theirs = self._series(), other._series()
        if (self.stop, self.epochs, [*ours]) != (other.stop, other.epochs, [*theirs]):
            return False
        return all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)

    __hash__ = None  # type: ignore[assignment]

    @property
    def finite(self) -> LRCurve:
        """The curve up to the first training loss that is not finite."""
        end = finite_length(self.loss)
        return self if end == len(self) else self[:end]

    @property
    def probed(self) -> LRCurve:
        """The curve at the iterations where the probe was evaluated; without a probe the whole."""
        return self if self.probe_loss is None else self[~np.isnan(self.probe_loss)]

    def __getitem__(self, part: slice | np.ndarray) -> LRCurve:
        """Return some of the iterations, with the stop and the epochs of the whole curve."""
        parts: dict[str, Any] = {name: values[part] for name, values in self._series().items()}
        return LRCurve(**parts, stop=self.stop, epochs=self.epochs)

    def to_frame(self, smoothing: Smoothing | None = None) -> pd.DataFrame:
        """Return the curve as a table with a row per iteration.

        The columns are ``iteration, lr, loss, smoothed_loss``, and those of ``probe_loss``,
        ``probe_baseline``, ``val_loss``, and ``full_val_loss`` that the curve has.
        """
        import pandas as pd  # takes a third of a second, and most curves are no tables

        frame = pd.DataFrame(self._series())
        frame.insert(2, "smoothed_loss", (smoothing or Smoothing())(self.loss))
        return frame.rename_axis("iteration").reset_index()

    def to_csv(self, path: str | Path, smoothing: Smoothing | None = None) -> Path:
        """Write :meth:`to_frame` to ``path`` with all digits, so that it reads back exactly."""
        with replacing(Path(path)) as part:
            self.to_frame(smoothing).to_csv(part, index=False)
        return Path(path)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, stop: Stop = "completed", epochs: float | None = None
    ) -> LRCurve:
        """Read what :meth:`to_csv` wrote. The file does not hold ``stop`` and ``epochs``.

        Raises
        ------
        LRRTError
            If the file cannot be read as a table, or has no column ``lr`` or ``loss``.
        """
        import pandas as pd

        # Python's float reads every digit back; the parser of pandas does so only since version 3.
        numbers = dict.fromkeys(SERIES, lambda text: float(text or "nan"))
        try:
            frame = pd.read_csv(path, converters=numbers)
        except (OSError, ValueError) as error:  # a file's, a decoder's, a parser's, float's
            raise LRRTError(
                f"{path} is no table of numbers ({first_line(error)}): it is not a curve.csv"
            ) from error
        missing = {"lr", "loss"} - set(frame.columns)
        require(not missing, f"{path} has no column {sorted(missing)}: it is not a curve.csv")
        series: dict[str, Any] = {name: frame[name].to_numpy() for name in SERIES if name in frame}
        return cls(**series, stop=stop, epochs=epochs)

    def _repr_html_(self) -> str:
        """Return the curve as HTML for a notebook."""
        # At first use, and against the direction of imports: `plots` is built on this room, and
        # measuring needs no matplotlib.
        from lrrt_stage.plots.notebook import curve_html

        return curve_html(self)

    def _series(self) -> dict[str, np.ndarray]:
        """Return the series that the curve has, by name."""
        named = {name: getattr(self, name) for name in SERIES}
        return {name: values for name, values in named.items() if values is not None}
