"""A curve as a notebook shows it."""

from __future__ import annotations

from html import escape

import pandas as pd

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import plot_reading
from lrrt_stage.rules.reading import Reading

__all__ = ["curve_html", "describe_reading"]


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
    rows = []
    for name, suggestion in reading.suggestions.items():
        confidence = suggestion.confidence
        cells = ["none", "", suggestion.reason]
        if suggestion.range is not None:
            interval = f"{confidence.low:.3g} to {confidence.high:.3g}"
            cells = [str(suggestion.range), interval, str(confidence.verdict)]
        rows.append([f"{name} (default)" if name == reading.rule else name, *cells])
    columns = ["rule", "suggested range", "interval of its maximum", "verdict"]
    with pd.option_context("display.max_colwidth", None):
        return pd.DataFrame(rows, columns=columns).to_html(index=False, justify="left")
