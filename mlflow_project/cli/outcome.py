"""The output of a command when its stage is done: a table for people, JSON for the next step."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.files import write_text
from mlflow_project.cli.options import OutputOptions
from mlflow_project.handoff.artifacts import CONTRACT_VERSION
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.connection import known_experiment
from mlflow_project.tracking.record import get_run
from mlflow_project.tracking.store import StoreUnavailable
from mlflow_project.tracking.views import page, view_page

__all__ = ["result_of", "show_result"]

OWN_TAGS = "lrrt."
SERIES = {
    "lr",
    "log10_lr",
    "train_loss",
    "smoothed_loss",
    "probe_loss",
    "probe_baseline",
    "full_val_loss",
}
"""Metrics with a value for each iteration or some of them, of which the last says nothing."""
RANGES = ("suggested", "narrowed", "refined", "trained")


def result_of(run: Run) -> dict[str, Any]:
    """Return what the next step of a pipeline needs of a finished run, as JSON.

    ``run_id``, ``run_name``, ``experiment``, and ``lrrt_run_id`` (for :func:`load_handoff`); the
    tags of the contract without ``lrrt.``, such as ``stage``, ``rule`` and ``verdict``; and the
    metrics, such as ``suggested_lr_max``, which for ``study`` are in ``metrics``; not those of
    every iteration. For ``compare``,
    ``tests`` has the range tests.
    """
    logged, stage = run.data.tags, run.data.tags[tags.STAGE]
    metrics = {
        name: value
        for name, value in run.data.metrics.items()
        if math.isfinite(value) and name not in SERIES
    }
    found: dict[str, Any] = {
        "contract_version": CONTRACT_VERSION,
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "experiment": _experiment_name(run.info.experiment_id),
    }
    found |= {
        tag.removeprefix(OWN_TAGS): value
        for tag, value in logged.items()
        if tag.startswith(OWN_TAGS)
    }
    found |= {"metrics": metrics} if stage == "study" else metrics
    if "fits" in found:
        found["fits"] = found["fits"] == "true"
    source = run.info.run_id if stage in ("lrrt", "test") else logged.get(tags.SOURCE)
    if source is not None:
        found.setdefault("lrrt_run_id", source)
    if stage == "compare":
        compared = logged[tags.COMPARED].split(",")
        found["tests"] = [result_of(get_run(run_id)) for run_id in compared]
    return found


def show_result(title: str, run_id: str, output: OutputOptions) -> dict[str, Any]:
    """Print and return the :func:`result_of` a stage's run; write it as JSON if asked."""
    run = get_run(run_id)
    found = result_of(run)
    target = console.ERR if output.output_json == "-" else console.OUT
    console.summary(title, _rows(found, run), target)
    if "reason" in found:
        target.print(f"{'Fits' if found['fits'] else 'No longer fits'}: {found['reason']}")
    uri = mlflow.get_tracking_uri()
    command = console.ui_command(uri)
    served = command if uri.startswith("http") else "http://127.0.0.1:5000"
    target.print(f"Open it in the MLflow UI: {command}")
    target.print(f"This run: {served}/{page(run)}")
    target.print(f"All runs with their ranges: {served}/{view_page(run.info.experiment_id)}")
    text = json.dumps(found, indent=2) + "\n"
    if output.output_json == "-":
        print(text, end="")
    elif output.output_json is not None:
        try:
            # A link stays one: /dev/stdout is one as well.
            write_text(Path(os.path.realpath(output.output_json)), text)
        except OSError as error:
            raise LRRTError(
                f"run {run_id} is done, but output_json={output.output_json!r} cannot be written: "
                f"{first_line(error)}"
            ) from error
    return found


def _experiment_name(experiment_id: str) -> str | None:
    """Return the name of an experiment; None while the store is away."""
    with suppress(StoreUnavailable, MlflowException):
        return str(known_experiment(experiment_id).name)
    return None


def _rows(found: dict[str, Any], run: Run) -> dict[str, str]:
    rows = {}
    ranges = {
        name: (found[f"{name}_lr_min"], found[f"{name}_lr_max"])
        for name in RANGES
        if f"{name}_lr_max" in found
    }
    for name, (low, high) in ranges.items():
        if name != "narrowed" or (low, high) != ranges.get("suggested"):
            rows[f"{name} LR range"] = f"{low:.3g} to {high:.3g}"
        if name == "suggested" and "verdict" in found:
            rows["suggestion"] = found["verdict"]
    end = "best" if found["stage"] == "refine" else "final"
    for name in (each for each in found if each.startswith("val_")):
        rows[f"{end} validation {name.removeprefix('val_')}"] = f"{found[name]:.4g}"
    if "best_epoch" in found:
        epoch = f"epoch {found['best_epoch']:.0f}"
        rows["best validation loss"] = f"{found['best_val_loss']:.4g} ({epoch})"
    if found.get("attempts", 1) > 1:
        rows["attempts"] = f"{found['attempts']:.0f}"
    if "fits" in found:
        rows["LR in use"] = f"{found['lr_in_use']:.3g}"
    if found.get("lrrt_run_id", found["run_id"]) != found["run_id"]:
        rows["range test"] = found["lrrt_run_id"]
    if "model" in found:
        rows["model"] = found["model"]
    rows["run"] = found["run_id"]
    if found["stage"] == "study":
        rows["report"] = f"{run.info.artifact_uri.removeprefix('file://')}/report.html"
    return rows
