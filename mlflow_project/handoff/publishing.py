"""The files that a range-test run publishes, and their names."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrrt_stage import Confidence, LRCurve, LRRange, NoSuggestion, Smoothing
from lrrt_stage.plots import curve_plot as plots
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import CONTRACT_VERSION, CURVE, CURVE_TAG, sha256
from mlflow_project.tracking.tags import WEIGHTS_TAG
from pipeline import PreparedTask, RangeTestPlan
from pipeline.decide.several_tests import Consensus, settled
from pipeline.training.plots import consensus_items

__all__ = ["publish"]

WEIGHTS, TASK = "initial_weights.safetensors", "task.json"
SUGGESTIONS, PICTURE, PAGE = "suggestions.json", "lrrt_curve.png", "lrrt_curve.html"
FINAL_WEIGHTS, FINAL_WEIGHTS_TAG = "final_weights.safetensors", "lrrt.final_weights_sha256"
FILE_TAGS = {
    TASK: "lrrt.task_sha256",
    SUGGESTIONS: "lrrt.suggestions_sha256",
    CURVE: CURVE_TAG,
}


def publish(
    folder: Path,
    prepared: PreparedTask,
    plan: RangeTestPlan,
    state: weights.State,
    *,
    curve: LRCurve | None = None,
    answers: Mapping[str, LRRange | NoSuggestion] | None = None,
    sure: Mapping[str, Confidence] | None = None,
    rule: str = "",
    agreed: Consensus | NoSuggestion | None = None,
    page: bool = True,
) -> dict[str, str]:
    """Write a range-test run's files into ``folder`` and return its tags.

    Called before the test with the weights and the task alone, and after it with all of it, so
    that the weights are kept however the test ends. Of several tests, ``agreed`` is what they came
    to; the curve and the answers are those of the first. Without ``page`` the interactive plot,
    5 MB, is left out.
    """
    weights.save(state, folder / WEIGHTS)
    _write_json(
        folder / TASK,
        {
            "contract_version": CONTRACT_VERSION,
            "task": asdict(prepared.task),
            "range_test": asdict(plan),
            "data_sha256": prepared.data.digest,
            "device": str(prepared.device),
            "environment": _environment(prepared.device),
        },
    )
    if curve is not None and answers is not None and sure is not None:
        smoothing = plan.smoothing
        curve.to_csv(folder / CURVE, smoothing)
        suggestions = _suggestions(curve, smoothing, answers, sure, rule, agreed)
        _write_json(folder / SUGGESTIONS, suggestions)
        # A consensus takes the place of the range that the rule reads from this curve alone.
        drawn = (curve, answers, rule if agreed is None else "", smoothing)
        more = consensus_items(agreed) if isinstance(agreed, Consensus) else []
        plots.curve_figure(*drawn, more).savefig(folder / PICTURE)
        if page:
            plots.write_page(plots.curve_page(*drawn, more), folder / PAGE)
    files = {tag: folder / name for name, tag in FILE_TAGS.items()}
    return {
        WEIGHTS_TAG: weights.digest(state),
        **{tag: sha256(path) for tag, path in files.items() if path.exists()},
    }


def _suggestions(
    curve: LRCurve,
    smoothing: Smoothing,
    answers: Mapping[str, LRRange | NoSuggestion],
    sure: Mapping[str, Confidence],
    rule: str,
    agreed: Consensus | NoSuggestion | None,
) -> dict[str, Any]:
    chosen, how_sure = settled(answers[rule], sure[rule], agreed)
    content = {
        "contract_version": CONTRACT_VERSION,
        "rule": rule,
        "range": _range(chosen),
        "rules": {name: _answer(answer, sure[name]) for name, answer in answers.items()},
        "smoothing": asdict(smoothing),
        "curve": {"stop": curve.stop, "iterations": len(curve), "epochs": curve.epochs},
    }
    if isinstance(agreed, Consensus):
        content["consensus"] = _consensus(agreed, how_sure)
    elif agreed is not None:
        content["consensus"] = _answer(agreed, how_sure)
    return content


def _range(answer: LRRange | NoSuggestion | None) -> dict[str, float] | None:
    return asdict(answer) if isinstance(answer, LRRange) else None


def _consensus(agreed: Consensus, how_sure: Confidence) -> dict[str, Any]:
    return {
        "tests": len(agreed.ranges),
        "vary": agreed.options.vary,
        "agreement": agreed.options.agreement,
        "ranges": [_range(each) for each in agreed.ranges],
        "without_suggestion": agreed.without_suggestion,
        "overlap": agreed.overlap,
        "decades": agreed.decades,
        **_interval(how_sure),
    }


def _answer(answer: LRRange | NoSuggestion, how_sure: Confidence) -> dict[str, Any]:
    if isinstance(answer, NoSuggestion):
        return {"no_suggestion": str(answer), "verdict": answer.verdict}
    return {**asdict(answer), **_interval(how_sure)}


def _interval(how_sure: Confidence) -> dict[str, Any]:
    interval = {"low": how_sure.low, "high": how_sure.high}
    return {"interval": interval, "verdict": how_sure.verdict}


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
