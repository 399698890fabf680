"""The files that a range test and a training publish: their names, and how they are read."""

from __future__ import annotations

from typing import Any

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
from lrrt_stage.settings import require
from pipeline.decide.options import ConsensusOptions

__all__ = ["range_from_json", "reading_from_json"]

WEIGHTS = "initial_weights.safetensors"
FINAL_WEIGHTS, FINAL_WEIGHTS_TAG = "final_weights.safetensors", "lrrt.final_weights_sha256"
BEST_WEIGHTS, BEST_WEIGHTS_TAG = "best_weights.safetensors", "lrrt.best_weights_sha256"
TASK, TASK_TAG = "task.json", "lrrt.task_sha256"
CURVE, CURVE_TAG = "curve.csv", "lrrt.curve_sha256"
SUGGESTIONS, SUGGESTIONS_TAG = "suggestions.json", "lrrt.suggestions_sha256"


def reading_from_json(content: dict[str, Any], curve: LRCurve) -> Reading:
    """Return the reading of ``curve`` that ``suggestions.json`` holds."""
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
