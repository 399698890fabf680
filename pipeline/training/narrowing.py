"""From the suggested range to the narrower one that training uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrrt_stage import LRRange
from lrrt_stage.settings import Options, setting

__all__ = ["POLICIES", "Narrowing"]

POLICIES: dict[str, Callable[[float], tuple[float, float]]] = {
    "top": lambda fraction: (0.0, fraction),
    "both": lambda fraction: (fraction / 2, fraction / 2),
    "none": lambda fraction: (0.0, 0.0),
}
"""Name -> function of a fraction: shares of the log width to take off at the bottom and the top."""


@dataclass(frozen=True)
class Narrowing(Options):
    """Takes a share of the range's log width off.

    The article advises to train with a narrower range than the recommended one, since its
    maximum can make training diverge; so the default takes the top off.

    Examples
    --------
    >>> Narrowing("top", 0.5)(LRRange(0.01, 1.0))
    LRRange(min=0.01, max=0.1)
    """

    narrowing: str = setting(
        "top", "Where the suggested range is narrowed: top, both ends, none.", choices=POLICIES
    )
    narrowing_fraction: float = setting(
        0.1, "Share of the range's log width that is taken off.", minimum=0, below=1
    )

    def __call__(self, suggested: LRRange) -> LRRange:
        """Return the narrower range."""
        bottom, top = POLICIES[self.narrowing](self.narrowing_fraction)
        width = suggested.max / suggested.min
        # Without a cut the end stays bit for bit what it was.
        return LRRange(
            suggested.min * width**bottom if bottom else suggested.min,
            suggested.max / width**top if top else suggested.max,
        )
