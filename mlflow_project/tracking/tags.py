"""The tags that all stages share. Their names, and those beside files, are a public contract."""

from __future__ import annotations

STAGE = "lrrt.stage"
UUID = "lrrt.uuid"
"""What a run is found by, before the store has given it an id, and after an answer was lost."""
ERROR = "lrrt.error"
FINGERPRINT = "lrrt.fingerprint"
RESUMES = "lrrt.resume_fingerprint"
"""What has to be the same for a training to go on: all but the number of processes and threads."""
RULE, VERDICT = "lrrt.rule", "lrrt.verdict"
WEIGHTS = "lrrt.weights_sha256"
FITS, REASON = "lrrt.fits", "lrrt.reason"
MODEL = "lrrt.model"
ATTEMPTS, LOST = "lrrt.attempts", "lrrt.lost_attempts"
"""How many attempts a training took, and why those before the last one were given up."""

CHECKPOINT, CHECKPOINT_FILE = "lrrt.checkpoint_sha256", "checkpoint.safetensors"
"""The tag with the digest of the artifact from which an interrupted training continues."""
SOURCE = "lrrt.source_run_id"
"""The run that a run starts from: its range test, or the run that ``init=run:ID`` names."""
BASELINE, COMPARED = "lrrt.baseline_run_id", "lrrt.compared_run_ids"
STEPS = {step: f"lrrt.{step}_run_id" for step in ("lrrt", "refine", "train")}
"""Step -> the tag for its run, on a run that contains the step or continues from it."""

MISMATCH = "lrrt.mismatch"
"""How the task of a training differs from that of its range test."""
