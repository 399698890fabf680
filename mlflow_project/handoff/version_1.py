"""Differences of contract version 1, so that its runs stay readable.

A run of version 1 with an unusual ramp went through a second ramp: 100 iterations from 1e-7 to the
same ``lr_end``. The rule ``robust`` read this reference ramp, which the run recorded beside its own
curve. Version 1 wrote ``null`` for a range test of one epoch.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

from mlflow.entities import Run

from lrrt_stage import LRCurve, RangeTestOptions
from mlflow_project.handoff.artifacts import load_artifact
from pipeline import RangeTestPlan

__all__ = ["has_reference", "read_reference", "with_epoch"]

REFERENCE_CURVE = "curve.reference.csv"
REFERENCE_TAG = "lrrt.reference_curve_sha256"
REFERENCE_RULE = "robust"
ITERATIONS, LR_START = 100, 1e-7


def with_epoch(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a published plan with the name that one epoch has today."""
    ramp = plan["ramp"]
    return plan | {"ramp": ramp | {"iterations": ramp["iterations"] or "epoch"}}


def has_reference(run: Run, rule: str) -> bool:
    """Return whether ``rule`` read the reference ramp of this run."""
    return rule == REFERENCE_RULE and REFERENCE_TAG in run.data.tags


def read_reference(run: Run, plan: RangeTestPlan) -> tuple[RangeTestPlan, LRCurve]:
    """Return the plan with the reference ramp, and the curve of that ramp."""
    curve = load_artifact(run, REFERENCE_CURVE, LRCurve.from_csv, REFERENCE_TAG)
    if not isfinite(curve.loss[-1]):
        curve = replace(curve, stop="non-finite")
    elif len(curve) < ITERATIONS:
        curve = replace(curve, stop="diverged")
    ramp = RangeTestOptions(
        lr_start=min(LR_START, plan.ramp.lr_end / 10),
        lr_end=plan.ramp.lr_end,
        iterations=ITERATIONS,
        stop_multiple=plan.ramp.stop_multiple,
    )
    return replace(plan, ramp=ramp), curve
