"""What can be drawn in a panel, as values: series, regions, marks, and rows or cells of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.colors
import numpy as np

from lrrt_stage.errors import LRRTError, first_line
from lrrt_stage.settings import require

__all__ = ["Band", "Bars", "Heatmap", "Interval", "Item", "Line", "Mark", "Span"]

Dash = Literal["solid", "dash", "dot"]
DASHES = ("solid", "dash", "dot")


@dataclass(frozen=True, eq=False)
class Line:
    """A series through the points ``x``, ``y`` (both ``[n]``); where one is NaN there is a gap.

    ``width`` is in points; 0 leaves the markers alone. ``hover`` is one text per point, which the
    page shows below the point's values. Without a ``name`` it has no entry in the legend.
    """

    x: np.ndarray
    y: np.ndarray
    name: str = ""
    color: str | None = None
    width: float = 1.5
    dash: Dash = "solid"
    markers: bool = False
    opacity: float = 1.0
    hover: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _set_arrays(self, "x", "y")
        _check_color(self.color)
        require(self.dash in DASHES, f"dash={self.dash!r} is not one of {DASHES}: choose one")
        require(0 < self.opacity <= 1, f"opacity={self.opacity} is not in (0, 1]: use 1")
        require(
            self.hover is None or len(self.hover) == len(self.x),
            f"{len(self.hover or ())} hover texts for {len(self.x)} points: give one per point",
        )


@dataclass(frozen=True, eq=False)
class Band:
    """The region between ``low`` and ``high`` over ``x``, all ``[n]``; a gap where not finite."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    name: str = ""
    color: str | None = None

    def __post_init__(self) -> None:
        _set_arrays(self, "x", "low", "high")
        _check_color(self.color)


@dataclass(frozen=True)
class Span:
    """The region from ``low`` to ``high`` of the x axis, over the whole height."""

    low: float
    high: float
    name: str = ""
    color: str | None = None
    opacity: float = 0.25

    def __post_init__(self) -> None:
        _check_color(self.color)
        finite = bool(np.isfinite([self.low, self.high]).all())
        require(
            finite and self.low < self.high,
            f"span from {self.low:g} to {self.high:g}: give two finite ends, the smaller one first",
        )


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x``, over the whole height."""

    x: float
    name: str = ""
    color: str | None = None
    dash: Dash = "dash"

    def __post_init__(self) -> None:
        _check_color(self.color)
        require(self.dash in DASHES, f"dash={self.dash!r} is not one of {DASHES}: choose one")
        require(bool(np.isfinite(self.x)), f"mark at {self.x}: give a finite value")


@dataclass(frozen=True, eq=False)
class Interval:
    """One row per label, with a bar from ``low`` to ``high`` and a dot at ``mid``, all ``[n]``.

    For ranges of runs, or effects with their confidence intervals. A row whose ends are not
    finite has no bar. Labels are from top to bottom; several items in a panel share the rows of
    equal labels.
    """

    labels: Sequence[str]
    low: np.ndarray
    high: np.ndarray
    mid: np.ndarray | None = None
    name: str = ""
    color: str | None = None

    def __post_init__(self) -> None:
        _set_arrays(self, "low", "high", "mid")
        _set_labels(self, "labels", len(self.low))
        _check_color(self.color)
        _check_order("low", self.low, "high", self.high)


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Cells coloured by ``z`` ``[n, m]``, its ``n`` rows named ``y``, its ``m`` columns ``x``.

    The first row is on top; a cell that is not finite is grey. ``name`` stands at the colour bar,
    which reaches from ``low`` to ``high`` (default: over the finite values). Up to 100 cells show
    their value with three digits, or their text in ``texts``, if given.
    """

    z: np.ndarray
    x: Sequence[str]
    y: Sequence[str]
    name: str = ""
    low: float | None = None
    high: float | None = None
    texts: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", _array("z", self.z))
        require(
            self.z.ndim == 2 and self.z.size > 0,
            f"z has shape {self.z.shape}: give a matrix with at least one cell",
        )
        for field, length in zip("yx", self.z.shape, strict=True):
            _set_labels(self, field, length)
        require(
            self.texts is None or [len(row) for row in self.texts] == [len(self.x)] * len(self.y),
            f"texts do not have the shape {self.z.shape} of z: give one text per cell",
        )

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the colour bar, the first below the second."""
        finite = self.z[np.isfinite(self.z)]
        low = self.low if self.low is not None else float(finite.min(initial=np.inf))
        high = self.high if self.high is not None else float(finite.max(initial=-np.inf))
        if not np.isfinite([low, high]).all():
            return 0.0, 1.0
        return (low, high) if low < high else (low - 0.5, low + 0.5)

    @property
    def cell_texts(self) -> list[list[str]] | None:
        """What is written in the cells, or None where there are too many."""
        if self.z.size > 100:
            return None
        if self.texts is not None:
            return [list(row) for row in self.texts]
        return [[f"{v:.3g}" if np.isfinite(v) else "" for v in row] for row in self.z]

    @property
    def inks(self) -> list[list[str]]:
        """The colour in which each cell's text can be read on viridis, or on grey."""
        low, high = self.limits
        return [["white" if (v - low) / (high - low) < 0.6 else "black" for v in r] for r in self.z]


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars from zero to ``values``, with error bars from ``low`` to ``high`` if given, all ``[n]``.

    Several items in a panel stand side by side where their labels are equal.
    """

    labels: Sequence[str]
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    color: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        _set_arrays(self, "values", "low", "high")
        _set_labels(self, "labels", len(self.values))
        _check_color(self.color)
        if (self.low is None) != (self.high is None):
            raise LRRTError("an error bar has one end: give low and high, or neither")
        if self.low is not None and self.high is not None:
            _check_order("low", self.low, "values", self.values)
            _check_order("values", self.values, "high", self.high)


Item = Line | Band | Span | Mark | Interval | Heatmap | Bars
"""Whatever a panel can show."""


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        problem = first_line(error)
        raise LRRTError(f"{name} cannot be drawn ({problem}): give one number per point") from error
    array.setflags(write=False)
    return array


def _set_arrays(item: Any, *names: str) -> None:
    """Make the fields read-only float64 arrays of one length."""
    for name in names:
        value = getattr(item, name)
        if value is None:
            continue
        array = _array(name, value)
        object.__setattr__(item, name, array)
        length = getattr(item, names[0]).shape
        require(
            array.ndim == 1 and array.shape == length,
            f"{name} has shape {array.shape}, {names[0]} has {length}: give arrays of one length",
        )


def _set_labels(item: Any, field: str, length: int) -> None:
    """Make the labels a tuple of texts, one per value and no two alike."""
    labels = tuple(map(str, getattr(item, field)))
    object.__setattr__(item, field, labels)
    require(
        len(labels) == length,
        f"{len(labels)} labels for {length} values: give one label per value",
    )
    twice = [label for label, times in Counter(labels).items() if times > 1]
    require(not twice, f"labels {twice} occur more than once: name each row differently")


def _check_color(color: str | None) -> None:
    require(
        color is None or matplotlib.colors.is_color_like(color),
        f"color={color!r} is not a colour: write it as '#1f4e79'",
    )


def _check_order(below: str, low: np.ndarray, above: str, high: np.ndarray) -> None:
    wrong = np.flatnonzero(low > high)
    require(
        not wrong.size,
        f"{below} is above {above} at index {wrong[:1].tolist()}: swap the two",
    )
