"""A study as files: tables of its tests, figures, and a report that a person reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from lrrt_stage import RULES
from lrrt_stage.files import replacing, write_text
from lrrt_stage.plots import drawing
from pipeline.jobs.jobs import FailedJob, JobResult, RangeTestJob, RangeTestResult, TrainingResult
from pipeline.studies.study import Findings

__all__ = ["FINDINGS", "study_frame", "tests_frame", "tests_table", "write_findings"]

FINDINGS = "findings.json"
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.8rem; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
.question { font-style: italic; color: #555; } .answer { font-size: 1.05rem; }
.advice { border-left: 4px solid #0072b2; background: #f2f6fa; padding: .6rem 1rem; }
.source { font-size: .85rem; color: #555; } img { display: block; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right; }
th { background: #f5f7f9; } td:first-child, th:first-child { text-align: left; }
details { margin: .5rem 0; overflow-x: auto; } summary { cursor: pointer; color: #00507d; }
"""


def tests_table(tests: Sequence[RangeTestResult]) -> pd.DataFrame:
    """Return a row per test: what tells it from the others, how it ended, what it suggests."""
    return pd.DataFrame([{"test": t.job.name, **t.job.labels, **_measured(t)} for t in tests])


def _measured(test: RangeTestResult) -> dict[str, Any]:
    found, confidence = test.range, test.reading.chosen.confidence
    return {
        "iterations": len(test.curve),
        "stop": test.curve.stop,
        "lr_min": found.min if found else None,
        "lr_max": found.max if found else None,
        "lr_max_low": confidence.low,
        "lr_max_high": confidence.high,
        "verdict": str(confidence.verdict),
    }


def study_frame(results: Sequence[RangeTestResult | TrainingResult]) -> pd.DataFrame:
    """Return a row per test or training, and iteration.

    The columns are ``test``, what tells the test from the others, ``iteration``, ``lr``,
    ``loss``, ``smoothed_loss``, and the validation losses where they were taken.
    """
    frames = []
    for result in results:
        if isinstance(result, RangeTestResult):
            frame = result.curve.to_frame(result.reading.smoothing)
        else:
            history = result.history
            frame = pd.DataFrame({"lr": history.lr, "loss": history.train_loss})
            frame = frame.rename_axis("iteration").reset_index()
        names = {"test": result.job.name, **result.job.labels}
        frames.append(frame.assign(**names)[[*names, *frame.columns]])
    return pd.concat(frames, ignore_index=True)


def tests_frame(results: Sequence[JobResult]) -> pd.DataFrame:
    """Return a row per range test: seeds, how it ended, every rule's maximum, and its error."""
    rows = []
    for result in results:
        if not isinstance(result.job, RangeTestJob):
            continue
        task, error = result.job.task, result.reason if isinstance(result, FailedJob) else ""
        row = {"test": result.job.name, **result.job.labels, "error": error}
        row |= {"seed": task.seed, "data_seed": task.data_seed}
        row |= {} if task.setup else {"batch_size": task.batch_size}
        if isinstance(result, RangeTestResult):
            row |= _measured(result) | {
                f"suggestion.{name}": suggestion.range.max
                for name, suggestion in result.reading.suggestions.items()
                if suggestion.range is not None
            }
        rows.append(row)
    return pd.DataFrame(rows)


def write_findings(
    findings: Findings, folder: Path, kind: str, rule: str, source: Mapping[str, str]
) -> None:
    """Write what a study found: its figures as PNG and SVG, ``findings.json``, ``report.html``.

    The report is one page that needs no other file. ``source`` says where the findings come from,
    for its reader: ``task``, ``setting``, ``run``, ``date``.
    """
    figures = {name: drawing.to_svg(figure) for name, figure in findings.figures.items()}
    for name, figure in findings.figures.items():
        drawing.save_figure(figure, folder / f"{name}.png")
        with replacing(folder / f"{name}.svg") as part:
            part.write_bytes(figures[name])
    content = {
        "kind": kind,
        "rule": rule,
        "rule_explained": RULES[rule].explanation,
        "source": dict(source),
        "title": findings.title,
        "question": findings.question,
        "sentences": list(findings.sentences),
        "advice": findings.advice,
        "metrics": {name: float(value) for name, value in findings.metrics.items()},
        "figures": list(findings.figures),
        "tables": {
            heading: json.loads(table.to_json(orient="split", index=False, double_precision=15))
            for heading, table in findings.tables.items()
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / FINDINGS, text)
    write_text(folder / "report.html", _page(findings, figures, rule, source))


def _page(
    findings: Findings, figures: Mapping[str, bytes], rule: str, source: Mapping[str, str]
) -> str:
    """Return the findings as HTML; nothing of what a user wrote is taken for HTML."""
    title = escape(findings.title)
    heading = escape(f"Learning-rate range tests: {source['task']}")
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<title>{heading}</title><style>{STYLE}</style></head><body><h1>{heading}</h1>",
            "<p>How far can a suggested learning rate be trusted on this task? A range test trains "
            "for some iterations while the learning rate grows at each of them, and records the "
            "loss: it stays, falls, turns, and explodes. A rule reads a range of learning rates "
            "from that curve. This is a study of several such tests; it ends with the rule that "
            "was used and with what to do.</p>",
            f"<h2>{title}</h2>",
            f'<p class="question">{escape(findings.question)}</p>',
            *(f'<p class="answer">{escape(text)}</p>' for text in findings.sentences),
            *(drawing.svg_image(svg, f"{findings.title}: {name}") for name, svg in figures.items()),
            *(_table(heading, table) for heading, table in findings.tables.items()),
            f"<p>Rule <b>{escape(rule)}</b>: {escape(RULES[rule].explanation)}</p>",
            f'<p class="source">Measured on {escape(source["setting"])}. Run '
            f"{escape(source['run'])}, {escape(source['date'])}.</p>",
            f'<p class="advice"><b>What to do:</b> {escape(findings.advice)}</p>',
            "</body></html>\n",
        ]
    )


def _table(heading: str, table: pd.DataFrame) -> str:
    rows = table.to_html(
        index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="–"
    )
    state = " open" if len(table) <= 12 else ""
    return f"<details{state}><summary>{escape(heading)}</summary>{rows}</details>"
