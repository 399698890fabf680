"""A study as files: pictures, pages, tables, and a report that a person reads."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from plotly.offline import get_plotlyjs

from lrrt_stage.charts import write_page
from pipeline.studies.study import Findings

__all__ = ["SECTION", "write_findings", "write_report"]

SECTION = "section.html"
ORDER = (
    "smoothing",
    "initializations",
    "data-order",
    "mismatch",
    "grouped",
    "validation",
    "batch-size",
    "recipes",
)
"""Kinds in the order of the article's figures; others come after them."""
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.8rem; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
.question { font-style: italic; color: #555; } .answer { font-size: 1.05rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right; }
th { background: #f5f7f9; } td:first-child, th:first-child { text-align: left; }
details { margin: .5rem 0; } summary { cursor: pointer; color: #1f4e79; }
nav a { margin-right: 1rem; } code { background: #f2f4f6; padding: .1rem .3rem; }
"""


def write_findings(findings: Findings, folder: Path, kind: str, setting: str) -> str:
    """Write the findings' charts into ``folder`` as PNG and HTML, and their section of a report.

    ``setting`` says in a line what was studied. Returns the section, a piece of HTML.
    """
    pages = []
    for name, chart in findings.charts.items():
        chart.figure().savefig(folder / f"{name}.png")
        page = chart.page()
        write_page(page, folder / f"{name}.html")
        pages.append(page.to_html(full_html=False, include_plotlyjs=False))
    tables = [
        f"<details{' open' if len(table) <= 12 else ''}><summary>{html.escape(heading)}</summary>"
        + table.to_html(
            index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="–"
        )
        + "</details>"
        for heading, table in findings.tables.items()
    ]
    section = "\n".join(
        [
            f'<section id="{html.escape(kind)}"><h2>{html.escape(findings.title)}</h2>',
            f'<p class="question">{html.escape(findings.question)}</p>',
            *(f'<p class="answer">{html.escape(each)}</p>' for each in findings.sentences),
            *pages,
            *tables,
            f"<p>Measured on {html.escape(setting)}.</p></section>",
        ]
    )
    (folder / SECTION).write_text(section, encoding="utf-8")
    return section


def write_report(sections: Mapping[str, str], task: str, path: Path) -> Path:
    """Write one page of the sections by kind, in the article's order; it needs no network."""
    kinds = [
        *filter(sections.__contains__, ORDER),
        *(kind for kind in sections if kind not in ORDER),
    ]
    names = [html.escape(kind) for kind in kinds]
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    title = f"Learning-rate range tests: {task}"
    path.write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{html.escape(title)}</h1>"
        "<p>How far a suggested learning rate can be trusted on this task. A range test trains for "
        "about an epoch while the learning rate grows at every batch, and watches the loss: it "
        "stays, falls, turns, and explodes. A rule reads a range of rates from that curve. "
        "The article's (S. Maggio 2020): the maximum is a tenth of the rate at which the smoothed "
        "loss is lowest, the minimum is where it falls most steeply, or a tenth of the maximum. "
        "Each section is a study of many such tests; every picture can be zoomed, and shows its "
        f"values under the pointer.</p><nav>{links}</nav>\n"
        + "\n".join(sections[kind] for kind in kinds)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return path
