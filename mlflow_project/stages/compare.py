"""The comparison of range tests: their curves and ranges in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from lrrt_stage.errors import excerpt
from lrrt_stage.files import write_text
from lrrt_stage.plots.comparison_plot import comparison_figure
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import require
from mlflow_project.handoff.handoff import Handoff, source_of
from mlflow_project.stages.options import SignatureOptions
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import shown
from mlflow_project.tracking.record import get_run
from mlflow_project.tracking.runs import stage_run
from mlflow_project.tracking.views import link, set_description

__all__ = ["compare_stage"]


def compare_stage(options: SignatureOptions, *, runs: Sequence[str]) -> str:
    """Draw the range tests behind ``runs`` in one figure, as a run; return its id.

    Its artifacts are ``overlay.png`` and ``ranges.csv``, a row for each test.
    """
    require(len(runs) >= 2, f"{len(runs)} run to compare: give two or more")
    signed = options.require_signature
    handoffs = [source_of(name, require_signature=signed)[1] for name in runs]
    ids = [handoff.run_id for handoff in handoffs]
    for name, run_id in zip(runs, ids, strict=True):
        require(
            ids.count(run_id) == 1,
            f"range test {run_id} is given more than once, the second time as {name!r}: give runs "
            "of different range tests",
        )
    tests = dict(zip(_names(handoffs), handoffs, strict=True))
    name = " against ".join(tests) if len(tests) == 2 else f"{len(tests)} tests"
    with stage_run("compare", name) as run:
        folder = run.begin_work()
        readings = {name: test.reading for name, test in tests.items()}
        save_figure(comparison_figure("", readings), folder / "overlay.png")
        rows = pd.DataFrame(_row(name, test) for name, test in tests.items())
        write_text(folder / "ranges.csv", rows.to_csv(index=False))
        run.set_tags({tags.COMPARED: ",".join(ids)})
        found = [f"{link(test.run_id)} ({name}): {test.range}" for name, test in tests.items()]
        set_description(f"Suggested ranges: {'; '.join(found)}.")
        for name, test in tests.items():
            console.note(f"{name}: {test.range}")
    return run.run_id


def _names(handoffs: Sequence[Handoff]) -> list[str]:
    """Return the fields by which the tasks differ; else the name and the id of each run."""
    recipes = [handoff.task for handoff in handoffs]
    tasks = [{} if None in recipes or task is None else asdict(task) for task in recipes]
    differing = [field for field in tasks[0] if any(t[field] != tasks[0][field] for t in tasks)]
    names = [
        excerpt(", ".join(f"{field}={shown(task[field])}" for field in differing)) for task in tasks
    ]
    if len(set(names)) == len(names):
        return names
    # Tests of the same task with different data, code, or options; or tests without a task.
    return [
        f"{name or excerpt(get_run(handoff.run_id).info.run_name)} ({handoff.run_id[:6]})"
        for name, handoff in zip(names, handoffs, strict=True)
    ]


def _row(name: str, test: Handoff) -> dict[str, Any]:
    return {
        "test": name,
        "run_id": test.run_id,
        "rule": test.rule,
        "lr_min": test.range.min,
        "lr_max": test.range.max,
        "max_low": test.confidence.low,
        "max_high": test.confidence.high,
        "verdict": str(test.confidence.verdict),
        "iterations": len(test.curve),
        "ended": test.curve.stop,
    }
