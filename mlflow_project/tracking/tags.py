"""The tags of runs that more than one stage reads or writes. Their names are a public contract."""

from __future__ import annotations

STAGE_TAG = "lrrt.stage"
ERROR_TAG = "lrrt.error"
FINGERPRINT_TAG = "lrrt.fingerprint"
RULE_TAG, VERDICT_TAG = "lrrt.rule", "lrrt.verdict"
WEIGHTS_TAG = "lrrt.weights_sha256"
FITS_TAG, REASON_TAG = "lrrt.fits", "lrrt.reason"

SOURCE_TAG = "lrrt.source_run_id"
"""The run that a run starts from: its range test, or the run that ``init=run:ID`` names."""
BASELINE_TAG, COMPARED_TAG = "lrrt.baseline_run_id", "lrrt.compared_run_ids"
STEP_TAGS = {step: f"lrrt.{step}_run_id" for step in ("lrrt", "refine", "train")}
"""Step -> the tag for its run, on a run that contains the step or continues from it."""

MISMATCH_TAG = "lrrt.mismatch"
"""How the task of a training differs from that of its range test."""
