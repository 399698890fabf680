"""Axes with their items, as values, and what every rendering of them must share.

The colour of each item, its entry in the legend, and where the rows of an axis of names lie are
decided here once, by :func:`placed`, so that the picture and the page cannot differ in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from itertools import count

import numpy as np
from matplotlib.colors import to_hex

from lrrt_stage.charts.series import Bars, Heatmap, Interval, Item, Mark, Span
from lrrt_stage.settings import require

__all__ = ["PALETTE", "Panel", "Placed", "axis_names", "placed", "slanted"]

PALETTE = (
    "#1f4e79", "#c0392b", "#27865f", "#b9770e", "#7d3c98",
    "#3a9bdc", "#d4719b", "#7f8c2a", "#16a3a3", "#555555",
)  # fmt: skip
"""Colours of the items that name none, in this order; after them the hues are spread evenly."""


@dataclass(frozen=True)
class Panel:
    """Axes with their items, drawn in this order, and one legend with the items' names.

    Items of one name share a colour and an entry in the legend. ``Bars`` stand alone or with
    other ``Bars``, a ``Heatmap`` alone, ``Interval`` with ``Span`` and ``Mark``.

    Raises
    ------
    LRRTError
        If the items cannot share axes, or a limit, mark or span is not positive on a log axis.
    """

    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    items: tuple[Item, ...] = ()
    xlog: bool = False
    ylog: bool = False
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    xticks: tuple[float, ...] | None = None
    """Where the x axis has labels, for values that are few; default: where it suits the axis."""
    legend: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        kinds = {type(item) for item in self.items}
        for alone, company in COMPANY.items():
            others = sorted(kind.__name__ for kind in kinds - {alone} - company)
            require(
                alone not in kinds or not others,
                f"{alone.__name__} shares a panel with {', '.join(others)}: use a panel for each",
            )
        maps = sum(isinstance(item, Heatmap) for item in self.items)
        require(maps <= 1, f"{maps} heatmaps in one panel: use a panel for each")
        ends = [(axis, limit) for axis, limit in (("x", self.xlim), ("y", self.ylim)) if limit]
        for axis, limit in ends:
            self._check_positive(axis, f"{axis}lim", limit)
            require(limit[0] != limit[1], f"{axis}lim={limit} is empty: give two different ends")
        for item in self.items:
            if isinstance(item, Mark):
                self._check_positive("x", "mark", (item.x,))
            elif isinstance(item, Span):
                self._check_positive("x", "span", (item.low, item.high))

    def _check_positive(self, axis: str, what: str, values: tuple[float, ...]) -> None:
        log = self.xlog if axis == "x" else self.ylog
        require(
            bool(np.isfinite(values).all()) and (not log or min(values) > 0),
            f"{what} {values} cannot be drawn: give finite values, above zero on a log axis",
        )


COMPANY: dict[type, set[type]] = {Heatmap: set(), Bars: set(), Interval: {Span, Mark}}
"""Items with an axis of names, and which others may share their panel."""


@dataclass(frozen=True, eq=False)
class Placed:
    """An item with what every rendering of it must share.

    ``entry`` is its text in the legend, empty if it has none. ``positions [n]`` are the centres of
    its rows on the axis of names, ``thickness`` their size, 1 being the distance of two names.
    """

    item: Item
    color: str
    entry: str
    positions: np.ndarray
    thickness: float


def axis_names(panel: Panel) -> tuple[list[str], list[str]]:
    """Return the names along the x axis and along the y axis; an axis of numbers has none."""
    for item in panel.items:
        if isinstance(item, Heatmap):
            return list(item.x), list(item.y)
    names = list(_rows(panel))
    return (names, []) if any(isinstance(item, Bars) for item in panel.items) else ([], names)


def slanted(names: Sequence[str]) -> bool:
    """Whether names along the x axis are too long to be written side by side."""
    return len(names) * (1 + max(map(len, names), default=0)) > 70


def placed(panels: Sequence[Panel]) -> list[list[Placed]]:
    """Return the items of each panel with their colours, legend entries and rows.

    A name has the same colour in all panels, if the items do not say otherwise.
    """
    named: dict[str, str] = {}
    return [list(_placed(panel, named)) for panel in panels]


def _placed(panel: Panel, named: dict[str, str]) -> Iterator[Placed]:
    """Yield the panel's items; ``named`` keeps the colours of names from panel to panel."""
    rows = _rows(panel)
    stacked = sum(isinstance(item, Interval | Bars) for item in panel.items)
    given = [getattr(item, "color", None) for item in panel.items]
    given = [None if color is None else to_hex(color) for color in given]
    taken = {*given, *(named[item.name] for item in panel.items if item.name in named)}
    free = (color for color in _colors() if color not in taken)
    entries: Counter[str] = Counter()
    index = 0
    for item, color in zip(panel.items, given, strict=True):
        if color is None and not isinstance(item, Heatmap):
            color = named.get(item.name) or next(free)
        if item.name and color is not None:
            named.setdefault(item.name, color)
        entries[item.name] += 1
        positions, thickness = np.zeros(0), 0.8 / max(stacked, 1)
        if isinstance(item, Interval | Bars):
            shift = (index - (stacked - 1) / 2) * thickness
            positions = np.array([rows[label] + shift for label in item.labels], dtype=float)
            index += 1
        first = panel.legend and entries[item.name] == 1 and not isinstance(item, Heatmap)
        yield Placed(item, color or "", item.name if first else "", positions, thickness)


def _rows(panel: Panel) -> dict[str, int]:
    """Return the rows of ``Interval`` and ``Bars`` by label, in the order of their appearance."""
    labels = [item.labels for item in panel.items if isinstance(item, Interval | Bars)]
    return {name: row for row, name in enumerate(dict.fromkeys(n for part in labels for n in part))}


def _colors() -> Iterator[str]:
    yield from PALETTE
    for index in count():  # steps of the golden ratio leave no two hues close
        hue = (0.1 + index * 0.618034) % 1
        yield to_hex(hsv_to_rgb(hue, 0.6, 0.75))
