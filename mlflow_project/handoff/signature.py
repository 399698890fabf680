"""The signature of a run: who has the key published what the run says, and nobody changed it since.

The digests of a run stand beside the files that they describe, and whoever may write to the
experiment can change both. The signature is an HMAC (RFC 2104) with a key that the store never
sees.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Run

from lrrt_stage.settings import require
from mlflow_project.tracking import tags
from mlflow_project.tracking.outbox import UNSENT, Outbox
from mlflow_project.tracking.record import active_record
from mlflow_project.tracking.senders import SENDERS

__all__ = [
    "KEY",
    "REQUIRED",
    "SIGNATURE",
    "check_key",
    "check_signature",
    "sign_run",
    "signature_tags",
]

KEY, REQUIRED = "LRRT_SIGNING_KEY", "LRRT_REQUIRE_SIGNATURE"
SIGNATURE = "lrrt.signature"
SHORTEST = 16
"""Characters of a key: fewer could be guessed."""
DIGESTS = "_sha256"
DECISIVE = (
    tags.STAGE,
    tags.SOURCE,
    tags.MISMATCH,
    tags.FINGERPRINT,
    tags.RESUMES,
    *tags.STEPS.values(),
)
"""Tags that decide which run is used, and for what."""
RATES = ("trained_lr_max", "refined_lr_max", "lr_in_use")
"""Metrics that decide which learning rate is checked."""


def check_key() -> None:
    """Raise LRRTError if the environment has a key that is too short; call it before any work."""
    require(
        len(os.environ.get(KEY, "x" * SHORTEST).strip()) >= SHORTEST,
        f"{KEY} has fewer than {SHORTEST} characters: use a longer key, such as that of openssl "
        "rand -hex 32, or unset it",
    )


def sign_run() -> None:
    """Sign the run of the active stage, if the environment has a key; after all else is published.

    A run that was opened while the store was away, or names one, is signed when the ids are known:
    with the MAC of what it says now, so that nobody has anything else signed.
    """
    record = active_record()
    if KEY not in os.environ:
        return
    message = _message(record.as_run())
    if UNSENT.encode() in message:
        record.log_signed(base64.b64encode(message).decode(), _mac(message))
    else:
        record.set_tags({SIGNATURE: _mac(message)})


def _sign_later(outbox: Outbox, content: Mapping[str, str]) -> None:
    """Sign a run that has got its id, and those that it names."""
    require(
        KEY in os.environ,
        f"the run is to be signed, and there is no key: set {KEY} to that of the team",
    )
    message = base64.b64decode(content["message"])
    require(
        hmac.compare_digest(_mac(message), content["mac"]),
        f"what is to be signed was changed, or is of a different key: check {KEY}, or run the "
        "stage again",
    )
    signed = _encoded(outbox.with_ids(json.loads(message)))
    outbox.request("log", tags={SIGNATURE: _mac(signed)})


SENDERS["signature"] = _sign_later


def signature_tags(run: Run) -> dict[str, str]:
    """Return the tag that signs a run; nothing if the environment has no key."""
    return {SIGNATURE: _mac(_message(run))} if KEY in os.environ else {}


def check_signature(run: Run, required: bool = False) -> None:
    """Raise LRRTError unless a run has the right signature, where one is ``required``.

    It is also required where the environment says so.
    """
    wanted = os.environ.get(REQUIRED, "false").strip().lower()
    require(
        wanted in ("true", "false", "1", "0", ""),
        f"{REQUIRED} must be true or false: correct the variable, or unset it",
    )
    if not required and wanted not in ("true", "1"):
        return
    require(
        KEY in os.environ,
        f"the signature of run {run.info.run_id} cannot be checked without a key: set {KEY} to the "
        "key that the run was signed with, or leave require_signature out",
    )
    found = run.data.tags.get(SIGNATURE)
    require(
        found is not None,
        f"run {run.info.run_id} has no signature: run its stage again with {KEY} set, or leave "
        "require_signature out",
    )
    require(
        hmac.compare_digest(str(found).encode(), _mac(_message(run)).encode()),
        f"the signature of run {run.info.run_id} is wrong: the run was changed after it was "
        f"published, or signed with a different key; check {KEY}, or run its stage again",
    )


def _message(run: Run) -> bytes:
    """Return what is signed: the run's id, and all that decides what is used of it."""
    logged, rates = run.data.tags, run.data.metrics
    return _encoded(
        {
            "run_id": run.info.run_id,
            "tags": {
                name: value
                for name, value in logged.items()
                if name in DECISIVE or (name.startswith("lrrt.") and name.endswith(DIGESTS))
            },
            "metrics": {name: float(rates[name]).hex() for name in RATES if name in rates},
        }
    )


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _mac(message: bytes) -> str:
    """Return the HMAC-SHA-256 of a message, in hex."""
    check_key()
    return hmac.new(os.environ[KEY].encode(), message, hashlib.sha256).hexdigest()
