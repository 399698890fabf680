"""Differences of contract version 1, so that its runs stay readable.

A run of version 1 with an unusual ramp went through a second ramp: 100 iterations from 1e-7 to the
same ``lr_end``. The rule ``robust`` read this reference ramp, which the run recorded beside its own
curve. Version 1 wrote ``null`` for a range test of one epoch. The first runs published no plan, no
intervals, and no verdicts.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from math import isfinite
from typing import Any

from mlflow.entities import Run

from lrrt_stage import LRCurve, Smoothing, Verdict, confidence
from mlflow_project.handoff.artifacts import load_artifact
from pipeline import RangeTestPlan

__all__ = ["translate"]

REFERENCE_CURVE = "curve.reference.csv"
REFERENCE_TAG = "lrrt.reference_curve_sha256"
ITERATIONS, LR_START = 100, 1e-7


def translate(
    run: Run, inputs: dict[str, Any], suggestions: dict[str, Any], curve: LRCurve
) -> LRCurve:
    """Turn the content of ``task.json`` and ``suggestions.json`` into that of version 2.

    Returns
    -------
    LRCurve
        The curve that the suggestions were read from.
    """
    has_reference = suggestions["rule"] == "robust" and REFERENCE_TAG in run.data.tags
    if has_reference:
        curve = load_artifact(run, REFERENCE_CURVE, LRCurve.from_csv, REFERENCE_TAG)
        if not isfinite(curve.loss[-1]):
            curve = replace(curve, stop="non-finite")
        elif len(curve) < ITERATIONS:
            curve = replace(curve, stop="diverged")
    default = asdict(RangeTestPlan(smoothing=Smoothing(**suggestions["smoothing"])))
    plan = inputs.setdefault("range_test", default)
    ramp = plan["ramp"]
    ramp["iterations"] = ramp["iterations"] or "epoch"
    if has_reference:
        plan["ramp"] = default["ramp"] | {
            "lr_start": min(LR_START, ramp["lr_end"] / 10),
            "lr_end": ramp["lr_end"],
            "iterations": ITERATIONS,
            "stop_multiple": ramp["stop_multiple"],
        }
    for rule, found in suggestions["rules"].items():
        if "no_suggestion" in found:
            found.setdefault("verdict", Verdict.NO_DESCENT)
        elif "interval" not in found:
            computed = confidence(curve, rule, Smoothing(**suggestions["smoothing"]))
            found["interval"] = {"low": computed.low, "high": computed.high}
            found["verdict"] = computed.verdict
    return curve
