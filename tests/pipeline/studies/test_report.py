from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lrrt_stage.charts import Chart, Line, Panel
from pipeline.studies import KINDS, Findings, write_findings, write_report
from pipeline.studies.report import ORDER, SECTION

NASTY = "<b>bold</b> & </script><script>alert(1)</script>"
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, text, and scripts apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts.append(data)
        elif not (self.inside and self.inside[-1] == "style"):
            self.text += data


def findings(title="A title", **more):
    line = Line(np.array([0.1, 1.0]), np.array([2.0, 1.0]), more.pop("label", "loss"))
    table = pd.DataFrame({"test": ["a", more.pop("cell", "b")], "lr": [0.012345678, np.nan]})
    return Findings(
        title,
        more.pop("question", "A question?"),
        more.pop("sentences", ["One answer.", "And another."]),
        {},
        {"curves": Chart("A chart", (Panel("", "lr", "loss", (line,), xlog=True),))},
        {more.pop("heading", "A table"): table},
    )


def test_a_study_is_written_as_pictures_pages_and_a_section(tmp_path):
    section = write_findings(findings(), tmp_path, "smoothing", "digits, model mlp")

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"curves.png", "curves.html", SECTION}
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert "Plotly.newPlot" in (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert (tmp_path / SECTION).read_text(encoding="utf-8") == section
    page = Page(section)
    assert page.inside == []
    assert page.tags[0] == ("section", {"id": "smoothing"})
    for text in ("A title", "A question?", "One answer.", "And another.", "A table", "0.01235", "–",
                 "Measured on digits, model mlp."):  # fmt: skip
        assert text in page.text
    assert any("Plotly.newPlot" in script for script in page.scripts)


def test_what_a_user_wrote_is_shown_and_not_run(tmp_path):
    nasty = findings(
        NASTY, question=NASTY, sentences=[NASTY], label=NASTY, cell=NASTY, heading=NASTY
    )
    section = write_findings(nasty, tmp_path, "initializations", NASTY)
    report = write_report({"initializations": section, NASTY: section}, NASTY, tmp_path / "r.html")
    for page in (Page(section), Page(report.read_text(encoding="utf-8"))):
        assert page.inside == []
        assert "b" not in [tag for tag, _ in page.tags]
        assert not any(script.strip().startswith("alert") for script in page.scripts)
        assert page.text.count(NASTY) >= 5


def test_the_report_needs_no_network(tmp_path):
    section = write_findings(findings(), tmp_path, "smoothing", "digits")
    report = write_report({"smoothing": section}, "digits mlp", tmp_path / "report.html")
    for path in (report, tmp_path / "curves.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert [tag for tag, attributes in page.tags if "src" in attributes] == []
        assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe")] == []
        targets = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
        assert all(target.startswith("#") for target in targets)
        assert any("plotly.js v" in script[:300] for script in page.scripts)  # the library


def test_all_kinds_stand_in_the_order_of_the_article(tmp_path):
    assert set(ORDER) == set(KINDS)
    sections = {
        kind: write_findings(findings(f"About {kind}"), tmp_path, kind, "digits")
        for kind in ["my-own", *sorted(KINDS)]
    }
    text = write_report(sections, "digits mlp", tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    # Fig 3; 4 and 5, and the orders beside them; 7; the groups; 8; 9; Fig 4 against 5.
    assert ids == [
        "smoothing",
        "initializations",
        "data-order",
        "mismatch",
        "grouped",
        "validation",
        "batch-size",
        "recipes",
        "my-own",
    ]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in ids]
    drawn = re.findall(r'Plotly\.newPlot\(\s*"([^"]+)"', "\n".join(page.scripts))
    assert len(set(drawn)) >= 9  # one place each


@pytest.mark.parametrize(("rows", "is_open"), [(12, True), (13, False)])
def test_long_tables_are_folded(tmp_path, rows, is_open):
    long = Findings("T", "Q?", [], tables={"Tests": pd.DataFrame({"x": range(rows)})})
    page = Page(write_findings(long, tmp_path, "grouped", "digits"))
    (attributes,) = (attributes for tag, attributes in page.tags if tag == "details")
    assert ("open" in attributes) == is_open
