"""A row of the table: what was measured, what it is compared with, and what it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from benchmarks.performance.rounds import Timing

__all__ = ["Row", "compared", "table", "unmeasured"]

Compared = Literal["ratio", "measured", "ratio, at least"]


@dataclass(frozen=True)
class Row:
    """One row; numbers that were not measured are None, and ``note`` says why."""

    name: str
    what: str
    measured: float | None = None
    baseline: float | None = None
    target: float | None = None
    unit: str = "s"
    rounds: int = 0
    compares: Compared = "ratio"
    """What the target is compared with; it is a maximum, but where "at least" is said."""
    spread: tuple[float, float] | None = None
    """The lowest and the highest of the single rounds, of what ``compares`` names."""
    note: str = ""
    error: str = ""
    listing: dict[str, Any] = field(default_factory=dict)
    """What the number is made of."""
    ratio: float | None = None
    """Measured, divided by the baseline: the median of the rounds, each of which has both."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a measurement."""
        value = self.measured if self.compares == "measured" else self.ratio
        if value is None or self.target is None:
            return None
        at_least = self.compares == "ratio, at least"
        return value >= self.target if at_least else value <= self.target

    def to_json(self) -> dict[str, Any]:
        """Return the row as an object of ``results.json``."""
        return asdict(self) | {"met": self.met}


def compared(
    name: str,
    what: str,
    measured: Timing,
    baseline: Timing | None = None,
    *,
    target: float | None = None,
    compares: Compared = "ratio",
    per: int = 1,
    unit: str = "s",
    scale: float = 1.0,
    **more: Any,
) -> Row:
    """Return the row of two timings of the same rounds; both are of ``per`` steps each.

    An error of either of them becomes that of the row.
    """
    if error := measured.error or (baseline.error if baseline else ""):
        return Row(name, what, target=target, unit=unit, compares=compares, error=error)
    if not measured.seconds:
        return Row(
            name, what, target=target, unit=unit, compares=compares, note="unmeasured: no time left"
        )
    factor = scale / per
    single = [factor * value for value in measured.seconds]
    ratio = None
    if baseline is not None:
        # A machine that is slower for some seconds is so for both of a round.
        ratios = [a / b for a, b in zip(measured.seconds, baseline.seconds, strict=True)]
        ratio = median(ratios)
        single = single if compares == "measured" else ratios
    return Row(
        name,
        what,
        factor * measured.median,
        None if baseline is None else factor * baseline.median,
        target,
        unit,
        len(measured.seconds),
        compares,
        (min(single), max(single)),
        ratio=ratio,
        **more,
    )


def unmeasured(
    name: str, what: str, reason: str, target: float | None = None, unit: str = "s"
) -> Row:
    """Return the row of what cannot be measured here."""
    return Row(name, what, target=target, unit=unit, note=f"unmeasured: {reason}")


COLUMNS = ("name", "measured", "baseline", "ratio", "target", "unit", "rounds", "")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table for a terminal."""
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    for row in cells:
        first, *numbers, last = row
        padded = [first.ljust(widths[0])]
        padded += [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([*padded, last]).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    limit = {"ratio": "≤ {}x", "ratio, at least": "≥ {}x", "measured": "≤ {}"}[row.compares]
    target = "" if row.target is None else limit.format(_number(row.target))
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    if row.compares == "ratio" and row.ratio is not None and row.ratio < 2:
        ratio = f"{row.ratio:.3f}x"
    verdict = {True: "met", False: "missed", None: ""}[row.met]
    last = "; ".join(filter(None, (verdict, row.note, row.error and f"error: {row.error}")))
    numbers = _number(row.measured), _number(row.baseline), ratio, target
    return (row.name, *numbers, row.unit, str(row.rounds or ""), last)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
