"""A curve as a notebook shows it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.lr_range import LRRange
from lrrt_stage.errors import NoSuggestion
from lrrt_stage.plots.curve_plot import curve_figure
from lrrt_stage.rules.registry import SuggestionOptions, suggest_all
from lrrt_stage.rules.uncertainty import Confidence, confidence_all

__all__ = ["curve_html"]

DPI = 80
# Colours are the notebook's own, light or dark; the picture alone is on white.
TABLE = "border-collapse: collapse; margin: 0.5em 0; color: inherit; background: transparent"
CELL = "padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid rgba(128, 128, 128, 0.5)"


def curve_html(curve: LRCurve) -> str:
    """Return the curve as HTML that needs no other file: its picture, and a row for each rule.

    Each row has the rule's range, the interval of its maximum and the verdict, or why there is no
    suggestion; the default rule is marked. A curve without points is a sentence.
    """
    if not len(curve):
        return f"<p>LR range test: no iterations, {escape(curve.stop)}</p>"
    default = SuggestionOptions().rule
    answers = suggest_all(curve)
    table = _table(answers, confidence_all(curve), default)
    return f"<div>{_picture(curve, answers, default)}{table}</div>"


def _picture(curve: LRCurve, answers: Mapping[str, LRRange | NoSuggestion], rule: str) -> str:
    file = BytesIO()
    curve_figure(curve, answers, rule).savefig(file, format="png", dpi=DPI, facecolor="white")
    answer = answers[rule]
    found = f"suggested range {answer}" if isinstance(answer, LRRange) else "no suggestion"
    alt = (
        f"Loss over learning rate, {curve.lr[0]:.3g} to {curve.lr[-1]:.3g}, "
        f"{len(curve)} iterations, {curve.stop}; {found} (rule {rule})"
    )
    data = b64encode(file.getvalue()).decode("ascii")
    return (
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" '
        'style="max-width: 100%; background: white">'
    )


def _table(
    answers: Mapping[str, LRRange | NoSuggestion], trust: Mapping[str, Confidence], default: str
) -> str:
    head = _row("th", ["rule", "suggested range", "interval of its maximum", "verdict"])
    rows = [_rule_row(name, answers[name], trust[name], name == default) for name in answers]
    caption = '<caption style="text-align: left">Suggestions of every rule</caption>'
    return (
        f'<table style="{TABLE}">{caption}'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _rule_row(name: str, answer: LRRange | NoSuggestion, trust: Confidence, default: bool) -> str:
    label = f"{name} (default)" if default else name
    if isinstance(answer, LRRange):
        cells = [label, str(answer), f"{trust.low:.3g} to {trust.high:.3g}", str(trust.verdict)]
    else:
        cells = [label, "none", "", str(answer)]
    return _row("td", cells, bold=default)


def _row(tag: str, cells: list[str], bold: bool = False) -> str:
    weight = "; font-weight: bold" if bold else ""
    scope = ' scope="col"' if tag == "th" else ""
    text = "".join(f'<{tag}{scope} style="{CELL}{weight}">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{text}</tr>"
