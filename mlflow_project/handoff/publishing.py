"""The files that a range-test run publishes: how they are written and read back."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mlflow.entities import Run

from lrrt_stage import (
    Confidence,
    Consensus,
    LRCurve,
    LRRange,
    NoSuggestion,
    Reading,
    Smoothing,
    Suggestion,
    Verdict,
    confidence,
)
from lrrt_stage.plots.curve_plot import plot_reading
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff import version_1
from mlflow_project.handoff.artifacts import (
    CONTRACT_VERSION,
    load_artifact,
    read_json,
    readable,
    sha256,
)
from mlflow_project.tracking import tags
from pipeline import PreparedTask, RangeTestPlan

__all__ = ["plan_from_json", "publish_inputs", "publish_reading", "read_reading"]

WEIGHTS = "initial_weights.safetensors"
FINAL_WEIGHTS, FINAL_WEIGHTS_TAG = "final_weights.safetensors", "lrrt.final_weights_sha256"
TASK, TASK_TAG = "task.json", "lrrt.task_sha256"
CURVE, CURVE_TAG = "curve.csv", "lrrt.curve_sha256"
SUGGESTIONS, SUGGESTIONS_TAG = "suggestions.json", "lrrt.suggestions_sha256"
FIGURE = "lrrt_curve.png"


def publish_inputs(
    folder: Path, prepared: PreparedTask, plan: RangeTestPlan, state: weights.State
) -> dict[str, str]:
    """Write what a range test starts from into ``folder``, and return the tags of the digests."""
    weights.save(state, folder / WEIGHTS)
    content = {
        "contract_version": CONTRACT_VERSION,
        "task": asdict(prepared.task),
        "range_test": asdict(plan),
        "data_sha256": prepared.data.digest,
        "device": str(prepared.device),
        "environment": _environment(prepared.device),
    }
    _write_json(folder / TASK, content)
    return {tags.WEIGHTS: weights.digest(state), TASK_TAG: sha256(folder / TASK)}


def publish_reading(folder: Path, reading: Reading) -> dict[str, str]:
    """Write a reading into ``folder``, and return the tags of the digests."""
    curve = reading.curve
    curve.to_csv(folder / CURVE, reading.smoothing)
    content = {
        "contract_version": CONTRACT_VERSION,
        "rule": reading.rule,
        "range": _range_to_json(reading.final.range),
        "rules": {name: _to_json(suggestion) for name, suggestion in reading.suggestions.items()},
        "smoothing": asdict(reading.smoothing),
        "curve": {"stop": curve.stop, "iterations": len(curve), "epochs": curve.epochs},
    }
    if reading.consensus is not None:
        content["consensus"] = _consensus_to_json(reading.consensus, reading.final)
    _write_json(folder / SUGGESTIONS, content)
    plot_reading(reading).figure.get_figure(root=True).savefig(folder / FIGURE)
    return {
        CURVE_TAG: sha256(folder / CURVE),
        SUGGESTIONS_TAG: sha256(folder / SUGGESTIONS),
    }


def read_reading(run: Run, plan: RangeTestPlan) -> tuple[RangeTestPlan, Reading]:
    """Return the reading that a run published, and the plan of the curve that was read.

    The plan is ``plan``, that of the run, except for a run of version 1 with a reference ramp.

    Raises
    ------
    LRRTError
        If a file is missing, altered, or unreadable.
    """
    content = read_json(run, SUGGESTIONS, SUGGESTIONS_TAG)
    with readable(run, SUGGESTIONS):
        rule = content["rule"]
        smoothing = Smoothing(**content["smoothing"])
        ended = {name: content["curve"][name] for name in ("stop", "epochs")}
    if version_1.has_reference(run, rule):
        plan, curve = version_1.read_reference(run, plan)
    else:
        curve = _read_curve(run, ended)
    with readable(run, SUGGESTIONS):
        suggestions = {
            name: _from_json(found, curve, name, smoothing)
            for name, found in content["rules"].items()
        }
        consensus = content.get("consensus")
        if consensus is not None:
            consensus = _consensus_from_json(consensus, content["range"])
        return plan, Reading(curve, suggestions, rule, smoothing, consensus)


def _read_curve(run: Run, ended: Mapping[str, Any]) -> LRCurve:
    def load(path: Path) -> LRCurve:
        curve = LRCurve.from_csv(path, **ended)
        require(len(curve) > 0, "it has no iteration")
        return curve

    return load_artifact(run, CURVE, load, CURVE_TAG)


def plan_from_json(content: dict[str, Any] | None) -> RangeTestPlan:
    """Return the plan that a run published; the default one for the first runs, which did not."""
    if content is None:
        return RangeTestPlan()
    return RangeTestPlan.from_dict(version_1.with_epoch(content))


def _range_to_json(lr_range: LRRange | None) -> dict[str, float] | None:
    return None if lr_range is None else asdict(lr_range)


def _to_json(suggestion: Suggestion) -> dict[str, Any]:
    if suggestion.range is None:
        return {"no_suggestion": suggestion.reason, "verdict": suggestion.confidence.verdict}
    return {**asdict(suggestion.range), **_confidence_to_json(suggestion.confidence)}


def _confidence_to_json(found: Confidence) -> dict[str, Any]:
    return {"interval": {"low": found.low, "high": found.high}, "verdict": found.verdict}


def _from_json(
    content: dict[str, Any], curve: LRCurve, rule: str, smoothing: Smoothing
) -> Suggestion:
    if "no_suggestion" in content:
        return Suggestion.missing(_reason_from_json(content))
    lr_range = LRRange(content["min"], content["max"])
    if "interval" not in content:  # the first runs had none
        return Suggestion(lr_range, confidence(curve, rule, smoothing))
    verdict = Verdict(content["verdict"])
    return Suggestion(lr_range, Confidence(**content["interval"], verdict=verdict))


def _reason_from_json(content: dict[str, Any]) -> NoSuggestion:
    reason = content["no_suggestion"]
    return NoSuggestion(reason, Verdict(content.get("verdict", Verdict.NO_DESCENT)))


def _consensus_to_json(consensus: Consensus | NoSuggestion, final: Suggestion) -> dict[str, Any]:
    if isinstance(consensus, NoSuggestion):
        return _to_json(final)
    return {
        "tests": len(consensus.ranges),
        "vary": consensus.vary,
        "agreement": consensus.agreement,
        "ranges": [_range_to_json(lr_range) for lr_range in consensus.ranges],
        "without_suggestion": consensus.without_suggestion,
        "overlap": consensus.overlap,
        "decades": consensus.decades,
        **_confidence_to_json(final.confidence),
    }


def _consensus_from_json(
    content: dict[str, Any], lr_range: dict[str, float]
) -> Consensus | NoSuggestion:
    if "no_suggestion" in content:
        return _reason_from_json(content)
    return Consensus(
        LRRange(**lr_range),
        tuple(None if found is None else LRRange(**found) for found in content["ranges"]),
        content["agreement"],
        content["vary"],
    )


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "torchvision", "numpy", "mlflow", "optuna", "scikit-learn")
    return {
        "device_name": name,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
