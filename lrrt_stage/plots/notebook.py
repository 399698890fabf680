"""A curve as a notebook shows it."""

from __future__ import annotations

from html import escape

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import plot_reading
from lrrt_stage.rules.reading import Reading

__all__ = ["curve_html", "describe_reading"]

# Colours are the notebook's own, light or dark; only the figure is on white.
TABLE = "border-collapse: collapse; margin: 0.5em 0; color: inherit; background: transparent"
CELL = "padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid rgba(128, 128, 128, 0.5)"


def curve_html(curve: LRCurve) -> str:
    """Return the curve as HTML that needs no other file: its figure, and a row for each rule.

    A row has the rule's range, the interval of its maximum and the verdict, or why there is no
    suggestion; the default rule is marked. A curve without points is a sentence.
    """
    if not len(curve):
        return f"<p>LR range test: no iterations, {escape(curve.stop)}</p>"
    reading = Reading.from_curve(curve)
    image = drawing.svg_image(
        drawing.to_svg(plot_reading(reading).figure), describe_reading(reading)
    )
    return f"<div>{image}{_table(reading)}</div>"


def describe_reading(reading: Reading) -> str:
    """Return what the figure of a reading shows, for readers who do not see it."""
    curve, found = reading.curve, reading.final.range
    return (
        f"Loss over learning rate, {curve.lr[0]:.3g} to {curve.lr[-1]:.3g}, "
        f"{len(curve)} iterations, {curve.stop}; "
        f"{f'suggested range {found}' if found else 'no suggestion'} (rule {reading.rule})"
    )


def _table(reading: Reading) -> str:
    head = _row("th", ["rule", "suggested range", "interval of its maximum", "verdict"])
    rows = []
    for name, suggestion in reading.suggestions.items():
        confidence = suggestion.confidence
        cells = ["none", "", suggestion.reason]
        if suggestion.range is not None:
            interval = f"{confidence.low:.3g} to {confidence.high:.3g}"
            cells = [str(suggestion.range), interval, str(confidence.verdict)]
        chosen = name == reading.rule
        rows.append(_row("td", [f"{name} (default)" if chosen else name, *cells], bold=chosen))
    caption = '<caption style="text-align: left">Suggestions of every rule</caption>'
    return (
        f'<table style="{TABLE}">{caption}'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _row(tag: str, cells: list[str], bold: bool = False) -> str:
    weight = "; font-weight: bold" if bold else ""
    scope = ' scope="col"' if tag == "th" else ""
    text = "".join(f'<{tag}{scope} style="{CELL}{weight}">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{text}</tr>"
