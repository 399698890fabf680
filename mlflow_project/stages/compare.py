"""The comparison of range tests: their curves over each other, where the UI's charts fall short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import mlflow
import pandas as pd

from lrrt_stage.charts import write_page
from lrrt_stage.settings import require
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.lineage import source_of
from mlflow_project.tracking import console
from mlflow_project.tracking.descriptions import describe, link
from mlflow_project.tracking.params import shown
from mlflow_project.tracking.runs import get_run, name_run, stage_run, staged_files
from mlflow_project.tracking.tags import COMPARED_TAG
from pipeline.decide.overlay import Overlaid, overlay_chart

__all__ = ["compare_stage"]

MAX_NAME, MAX_LINKS = 100, 10
"""A longer name is that of no run; what is left of a description is in the table."""


def compare_stage(*, runs: Sequence[str]) -> str:
    """Draw the range tests behind ``runs`` over each other, as a run; return its id.

    Its artifacts are ``overlay.png``, ``overlay.html`` and ``ranges.csv``, a row for each test.

    Raises
    ------
    LRRTError
        If there are fewer than two, one is named twice, or one cannot be read.
    """
    require(len(runs) >= 2, f"{len(runs)} run to compare: give two or more")
    handoffs = [source_of(name).handoff for name in runs]
    ids = [each.run_id for each in handoffs]
    for name, run_id in zip(runs, ids, strict=True):
        first = runs[ids.index(run_id)]
        require(
            ids.count(run_id) == 1,
            f"{first!r} and {name!r} have one range test, {run_id}: give runs of two"
            if first != name
            else f"range test {run_id} is given more than once: give another",
        )
    with stage_run("compare") as run:
        names = _names(handoffs)
        both = " against ".join(names)
        name_run(run, both if len(both) <= MAX_NAME else f"{len(names)} tests")
        rows = _rows(names, handoffs)
        with staged_files(run) as folder:
            tests = [
                Overlaid(name, each.curve, each.plan.smoothing, each.range, each.confidence)
                for name, each in zip(names, handoffs, strict=True)
            ]
            chart = overlay_chart("", tests)
            chart.figure().savefig(folder / "overlay.png")
            write_page(chart.page(), folder / "overlay.html")
            rows.to_csv(folder / "ranges.csv", index=False)
        mlflow.set_tag(COMPARED_TAG, ",".join(ids))
        found = [
            f"{link(each.run_id)} ({name}): {each.range}"
            for name, each in zip(names, handoffs, strict=True)
        ]
        more = f"; and {len(found) - MAX_LINKS} more" if len(found) > MAX_LINKS else ""
        told = "; ".join(found[:MAX_LINKS]) + more
        describe(run, f"Range tests over each other. They suggest: {told}.")
        for name, each in zip(names, handoffs, strict=True):
            console.note(f"{name}: {each.range}")
    return run.info.run_id


def _names(handoffs: Sequence[Handoff]) -> list[str]:
    """Return what each test's task has that another's has not; else the run's name, or its id."""
    tasks = [asdict(each.task) for each in handoffs]
    differing = [field for field in tasks[0] if any(t[field] != tasks[0][field] for t in tasks)]
    names = [", ".join(f"{field}={shown(task[field])}" for field in differing) for task in tasks]
    if len(set(names)) == len(names):
        return names
    # Tasks that are the same: of other data, code or options.
    return [
        f"{name or get_run(each.run_id).info.run_name} ({each.run_id[:6]})"
        for name, each in zip(names, handoffs, strict=True)
    ]


def _rows(names: Sequence[str], handoffs: Sequence[Handoff]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "test": name,
            "run_id": each.run_id,
            "rule": each.rule,
            "lr_min": each.range.min,
            "lr_max": each.range.max,
            "max_low": each.confidence.low if each.confidence else None,
            "max_high": each.confidence.high if each.confidence else None,
            "verdict": str(each.confidence.verdict) if each.confidence else "",
            "iterations": len(each.curve),
            "ended": each.curve.stop,
        }
        for name, each in zip(names, handoffs, strict=True)
    )
