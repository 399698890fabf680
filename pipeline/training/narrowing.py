"""The part of the suggested range that training uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrrt_stage import LRRange
from lrrt_stage.settings import Options, require, setting

__all__ = ["POLICIES", "Narrowing"]

POLICIES: dict[str, Callable[[float], tuple[float, float]]] = {
    "top": lambda fraction: (0.0, fraction),
    "both": lambda fraction: (fraction / 2, fraction / 2),
    "none": lambda fraction: (0.0, 0.0),
}
"""Name -> function from a fraction to the shares of the log width left out below and above."""


@dataclass(frozen=True)
class Narrowing(Options):
    """Narrows a range by a share of its log width.

    The article advises training with a narrower range than the recommended one, since its maximum
    can make training diverge. The maximum of the rule ``robust`` allows for that, and a training
    that is ruined starts again, so that nothing is left out by default. With a different rule,
    leave out a share.

    Examples
    --------
    >>> Narrowing("top", 0.5)(LRRange(0.01, 1.0))
    LRRange(min=0.01, max=0.1)

    Raises
    ------
    LRRTError
        If a setting is not possible, or both ends are to be narrowed by nothing.
    """

    narrowing: str = setting(
        "top", "Where narrowing_fraction is taken off: top, both ends, none.", choices=POLICIES
    )
    narrowing_fraction: float = setting(
        0.0, "Share of the log width that is left out; 0: nothing.", minimum=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.narrowing != "both" or self.narrowing_fraction > 0,
            "narrowing='both' leaves nothing out: give narrowing_fraction as well",
        )

    def __call__(self, suggested: LRRange) -> LRRange:
        """Return what is left of the range."""
        bottom, top = POLICIES[self.narrowing](self.narrowing_fraction)
        width = suggested.max / suggested.min
        # An end that is not moved stays bit-equal: any width to the power 0 is exactly 1.
        return LRRange(suggested.min * width**bottom, suggested.max / width**top)
