import base64
from html.parser import HTMLParser

import numpy as np
import pytest

from lrrt_stage import RULES, LRCurve, NoSuggestion, confidence, suggest

LR = np.geomspace(1e-5, 10, 100)
NOISE = np.random.default_rng(0).normal(0, 0.02, 100)
VALLEY = 2.3 - 2 * np.exp(-((np.log10(LR) + 1) ** 2)) + np.where(LR > 2, LR, 0) + NOISE
CURVES = {
    "a valley": LRCurve(LR, VALLEY, probe_loss=VALLEY, stop="diverged", epochs=3.5),
    "flat": LRCurve(LR, 2.3 + NOISE[::-1]),
    "interrupted": LRCurve(LR[:3], [2.3, 2.2, 2.1], stop="interrupted"),
    "one point": LRCurve(LR[:1], [2.3], stop="interrupted"),
    "not finite": LRCurve(LR[:1], [np.nan], stop="non-finite"),
}


class Page(HTMLParser):
    """Rows of cells, images, and whether all that was opened was closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page():
    return Page(CURVES["a valley"]._repr_html_())


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_is_shown_with_nothing_to_fetch(name):
    text = CURVES[name]._repr_html_()
    page = Page(text)
    assert len(page.rows) == 1 + len(RULES)
    (image,) = page.images
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"<svg" in base64.b64decode(data)
    assert "http" not in text.replace(data, "")
    assert "<script" not in text


def test_the_table_has_every_rules_range_interval_and_verdict(page):
    curve = CURVES["a valley"]
    head, *rows = page.rows
    assert head == ["rule", "suggested range", "interval of its maximum", "verdict"]
    assert [row[0].removesuffix(" (default)") for row in rows] == list(RULES)
    for row in rows:
        rule = row[0].removesuffix(" (default)")
        trust = confidence(curve, rule)
        assert row[1:] == [
            str(suggest(curve, rule)),
            f"{trust.low:.3g} to {trust.high:.3g}",
            str(trust.verdict),
        ]


def test_the_default_rule_alone_is_marked(page):
    assert [row[0] for row in page.rows if "default" in row[0]] == ["robust (default)"]


def test_the_figure_is_described_in_words(page):
    alt = page.images[0]["alt"]
    assert "1e-05 to 10, 100 iterations, diverged" in alt
    assert str(suggest(CURVES["a valley"])) in alt
    flat = Page(CURVES["flat"]._repr_html_())
    assert "no suggestion" in flat.images[0]["alt"]


def test_a_rule_without_a_suggestion_says_why():
    for name, answer, interval, why in Page(CURVES["flat"]._repr_html_()).rows[1:]:
        with pytest.raises(NoSuggestion) as reason:
            suggest(CURVES["flat"], name.removesuffix(" (default)"))
        assert (answer, interval, why) == ("none", "", str(reason.value))


def test_a_curve_without_points_is_a_sentence():
    empty = LRCurve([], [], stop="interrupted")
    assert empty._repr_html_() == "<p>LR range test: no iterations, interrupted</p>"


def test_colours_of_the_text_are_the_notebooks():
    text = CURVES["a valley"]._repr_html_()
    assert text.count("color:") == 0
    assert text.count("background: white") == 1  # of the figure
