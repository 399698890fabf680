"""The files that a range-test run publishes: how they are written and read back."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrrt_stage import (
    RULES,
    Confidence,
    Consensus,
    LRCurve,
    LRRange,
    NoSuggestion,
    Reading,
    Smoothing,
    Suggestion,
    Verdict,
)
from lrrt_stage.errors import excerpt
from lrrt_stage.plots.curve_plot import plot_reading
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import masked, require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import CONTRACT_VERSION, sha256, write_json
from mlflow_project.handoff.signature import check_key
from mlflow_project.tracking import tags
from mlflow_project.tracking.record import active_record
from pipeline import RangeTestPlan, Task
from pipeline.decide.several_tests import ConsensusOptions

__all__ = ["publish_inputs", "publish_reading", "range_from_json", "reading_from_json"]

WEIGHTS = "initial_weights.safetensors"
FINAL_WEIGHTS, FINAL_WEIGHTS_TAG = "final_weights.safetensors", "lrrt.final_weights_sha256"
BEST_WEIGHTS, BEST_WEIGHTS_TAG = "best_weights.safetensors", "lrrt.best_weights_sha256"
TASK, TASK_TAG = "task.json", "lrrt.task_sha256"
CURVE, CURVE_TAG = "curve.csv", "lrrt.curve_sha256"
SUGGESTIONS, SUGGESTIONS_TAG = "suggestions.json", "lrrt.suggestions_sha256"


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


def reading_from_json(content: dict[str, Any], curve: LRCurve) -> Reading:
    """Return the reading of ``curve`` that a file of :func:`publish_reading` holds."""
    suggestions = {name: _from_json(found) for name, found in content["rules"].items()}
    consensus = content.get("consensus")
    if consensus is not None:
        consensus = _consensus_from_json(consensus, content["range"])
    rule = content["rule"]
    require(rule in suggestions, f"rule {excerpt(rule, 80)!r} is not among its rules")
    require(
        rule in RULES,
        f"rule {excerpt(rule, 80)!r} is not known here: import the module that registers it",
    )
    return Reading(curve, suggestions, rule, Smoothing(**content["smoothing"]), consensus)


def range_from_json(content: dict[str, Any]) -> LRRange:
    """Return the range in a file of a run, whose ends have to be numbers."""
    lr_range = LRRange(**content)
    require(all(_is_number(end) for end in (lr_range.min, lr_range.max)), "a range has no numbers")
    return lr_range


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _to_json(suggestion: Suggestion) -> dict[str, Any]:
    found = suggestion.confidence
    if suggestion.range is None:
        return {"no_suggestion": suggestion.reason, "verdict": found.verdict}
    interval = {"low": found.low, "high": found.high}
    return {**asdict(suggestion.range), "interval": interval, "verdict": found.verdict}


def _from_json(content: dict[str, Any]) -> Suggestion:
    verdict = Verdict(content["verdict"])
    if "no_suggestion" in content:
        return Suggestion.missing(NoSuggestion(excerpt(content["no_suggestion"]), verdict))
    lr_range = range_from_json({"min": content["min"], "max": content["max"]})
    found = Confidence(**content["interval"], verdict=verdict)
    require(
        _is_number(found.low) and _is_number(found.high) and 0 < found.low <= found.high,
        "an interval is not 0 < low <= high",
    )
    return Suggestion(lr_range, found)


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


def _consensus_from_json(
    content: dict[str, Any], lr_range: dict[str, float]
) -> Consensus | NoSuggestion:
    if "no_suggestion" in content:
        return NoSuggestion(excerpt(content["no_suggestion"]), Verdict(content["verdict"]))
    ranges = tuple(None if each is None else range_from_json(each) for each in content["ranges"])
    # Checks both, and that there are two tests or more.
    options = ConsensusOptions(len(ranges), content["vary"], content["agreement"])
    require(any(ranges), "no test of a consensus has a suggestion")
    return Consensus(range_from_json(lr_range), ranges, options.agreement, options.vary)


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "torchvision", "numpy", "mlflow", "optuna", "scikit-learn")
    return {
        "device_name": name,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
