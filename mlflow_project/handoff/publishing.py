"""Writing what a range-test run publishes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrrt_stage import Consensus, NoSuggestion, Reading, Suggestion
from lrrt_stage.plots.curve_plot import plot_reading
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import masked
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import CONTRACT_VERSION, sha256, write_json
from mlflow_project.handoff.published import (
    CURVE,
    CURVE_TAG,
    SUGGESTIONS,
    SUGGESTIONS_TAG,
    TASK,
    TASK_TAG,
    WEIGHTS,
)
from mlflow_project.handoff.signature import check_key
from mlflow_project.tracking import tags
from mlflow_project.tracking.record import active_record
from pipeline import RangeTestPlan, Task

__all__ = ["publish_inputs", "publish_reading"]


def publish_inputs(
    folder: Path,
    task: Task | None,
    plan: RangeTestPlan,
    state: weights.State,
    data_digest: str,
    device: str,
    objects: Mapping[str, Any] | None = None,
) -> None:
    """Write what a range test of ``task`` starts from, and record the digests on the active run.

    A test of objects in hand has no task, and says what the ``objects`` are.
    """
    check_key()
    weights.save(state, folder / WEIGHTS)
    content = {
        "contract_version": CONTRACT_VERSION,
        "task": None if task is None else masked(asdict(task)),
        "range_test": plan,
        "data_sha256": data_digest,
        "device": device,
        "environment": _environment(torch.device(device)),
    }
    if objects is not None:
        content["objects"] = dict(objects)
    digest = write_json(folder / TASK, content)
    active_record().set_tags({tags.WEIGHTS: weights.digest(state), TASK_TAG: digest})


def publish_reading(folder: Path, reading: Reading) -> None:
    """Write a reading into ``folder``, and record the digests on the active run."""
    curve = reading.curve
    curve.to_csv(folder / CURVE, reading.smoothing)
    content = {
        "contract_version": CONTRACT_VERSION,
        "rule": reading.rule,
        "range": reading.final.range,
        "rules": {name: _to_json(suggestion) for name, suggestion in reading.suggestions.items()},
        "smoothing": reading.smoothing,
        "curve": {"stop": curve.stop, "iterations": len(curve), "epochs": curve.epochs},
    }
    if reading.consensus is not None:
        content["consensus"] = _consensus_to_json(reading.consensus, reading.final)
    digest = write_json(folder / SUGGESTIONS, content)
    save_figure(plot_reading(reading).figure, folder / "lrrt_curve.png")
    active_record().set_tags({CURVE_TAG: sha256(folder / CURVE), SUGGESTIONS_TAG: digest})


def _to_json(suggestion: Suggestion) -> dict[str, Any]:
    found = suggestion.confidence
    if suggestion.range is None:
        return {"no_suggestion": suggestion.reason, "verdict": found.verdict}
    interval = {"low": found.low, "high": found.high}
    return {**asdict(suggestion.range), "interval": interval, "verdict": found.verdict}


def _consensus_to_json(consensus: Consensus | NoSuggestion, final: Suggestion) -> dict[str, Any]:
    found = _to_json(final)
    if isinstance(consensus, NoSuggestion):
        return found
    names = ("vary", "agreement", "ranges", "without_suggestion", "overlap", "decades")
    return {
        "tests": len(consensus.ranges),
        **{name: getattr(consensus, name) for name in names},
        **{name: found[name] for name in ("interval", "verdict")},
    }


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "torchvision", "numpy", "mlflow", "optuna", "scikit-learn")
    return {
        "device_name": name,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
