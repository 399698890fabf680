"""Runs of a stage and their files, checked against the digests that the runs recorded."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lrrt_stage import LRCurve, LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords, require
from lrrt_stage.state import weights
from mlflow_project.tracking.runs import experiment_id, get_run
from mlflow_project.tracking.tags import ERROR_TAG, STAGE_TAG

__all__ = [
    "CONTRACT_VERSION",
    "CURVE",
    "CURVE_TAG",
    "find_run",
    "read_curve",
    "read_json",
    "read_weights",
    "readable",
    "require_digest",
    "run_file",
    "sha256",
]

CONTRACT_VERSION = 1
CURVE = "curve.csv"
CURVE_TAG = "lrrt.curve_sha256"


def find_run(run_id: str, *stages: str) -> Run:
    """Return the finished run ``run_id`` of one of ``stages``.

    ``latest`` is the newest run of the first of them in the experiment.

    Raises
    ------
    LRRTError
        If there is none; the message says what was found instead.
    """
    if run_id == "latest":
        return _latest(stages[0])
    run = get_run(run_id)
    of_stage = run.data.tags.get(STAGE_TAG)
    require(
        of_stage in stages,
        f"run {run_id} is of stage {of_stage!r}: give the id of a run of {' or '.join(stages)}",
    )
    reason = run.data.tags.get(ERROR_TAG, "it did not finish")
    require(
        run.info.status == "FINISHED",
        f"{of_stage} run {run_id} ended {run.info.status} ({reason}): give one that finished",
    )
    return run


def run_file(run: Run, name: str, folder: str | Path) -> Path:
    """Download the artifact ``name`` into ``folder``; raise LRRTError if the run has none."""
    # Bars of MLflow's would stand among what a script prints.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path=name, dst_path=str(folder)
        )
    except (MlflowException, OSError) as error:
        raise LRRTError(
            f"run {run.info.run_id} has no artifact {name}: it was deleted, or the artifact store "
            f"cannot be read; {_again(run)}"
        ) from error
    return Path(path)


def read_curve(run: Run, folder: str | Path, **ended: Any) -> LRCurve:
    """Return the curve of a range test.

    ``ended`` are ``stop`` and ``epochs``, which the file does not hold.

    Raises
    ------
    LRRTError
        If the file is missing, altered, unreadable, or empty.
    """
    path = run_file(run, CURVE, folder)
    # A run that failed after its test kept the curve, but no digest.
    if CURVE_TAG in run.data.tags or run.info.status == "FINISHED":
        require_digest(run, CURVE, CURVE_TAG, sha256(path))
    with readable(run, path):
        curve = LRCurve.from_csv(path, **ended)
        require(len(curve) > 0, "it has no iteration")
    return curve


def read_json(run: Run, name: str, tag: str, folder: str | Path) -> dict[str, Any]:
    """Return the content of a JSON artifact, checked against the digest in the tag ``tag``.

    Raises
    ------
    LRRTError
        If it is missing, altered, unreadable, or of a later version of the contract.
    """
    path = run_file(run, name, folder)
    require_digest(run, name, tag, sha256(path))
    with readable(run, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        theirs = int(content["contract_version"])
    require(
        theirs <= CONTRACT_VERSION,
        f"run {run.info.run_id} was published with contract version {theirs}, this lrrt-stage "
        f"knows {CONTRACT_VERSION}: update lrrt-stage",
    )
    return content


def read_weights(run: Run, name: str, tag: str) -> weights.State:
    """Return the tensors of a safetensors artifact, checked against the digest in ``tag``.

    Raises
    ------
    LRRTError
        If it is missing, altered or unreadable.
    """
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        path = run_file(run, name, folder)
        with readable(run, path):
            state = weights.load(path)
    require_digest(run, name, tag, weights.digest(state))
    return state


def require_digest(run: Run, name: str, tag: str, digest: str) -> None:
    """Raise LRRTError unless ``digest`` is what the run recorded for its artifact ``name``."""
    recorded = run.data.tags.get(tag)
    require(
        recorded == digest,
        f"{name} of run {run.info.run_id} was altered: its digest is {digest[:12]}…, the run "
        f"recorded {str(recorded)[:12]}…; {_again(run)}",
    )


@contextmanager
def readable(run: Run, path: Path) -> Iterator[None]:
    """Turn whatever reading the downloaded artifact ``path`` raises into one line."""
    try:
        yield
    except Exception as error:  # a parser's, or that of a value that is missing or of no use
        cause = first_line(error)
        if isinstance(error, LRRTError):
            cause = cause.rpartition(": ")[0] or cause  # its remedy is for a file of the user's own
        elif isinstance(error, KeyError):
            cause = f"it has no {cause}"
        # The download's folder is gone when this is read.
        cause = cause.replace(str(path), "it")
        raise LRRTError(
            f"{path.name} of run {run.info.run_id} cannot be read ({cause}): it was altered or "
            f"cut short; {_again(run)}"
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _latest(stage: str) -> Run:
    client, experiment = mlflow.MlflowClient(), experiment_id()
    found = client.search_runs(
        [experiment],
        f"tags.`{STAGE_TAG}` = '{stage}' and attributes.status = 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    name = client.get_experiment(experiment).name
    require(
        bool(found),
        f"experiment {name!r} in {hide_passwords(mlflow.get_tracking_uri())} has no finished "
        f"{stage} run: run {stage} first, or name the "
        "experiment that has one with --experiment or MLFLOW_EXPERIMENT_NAME",
    )
    return found[0]


def _again(run: Run) -> str:
    return f"run {run.data.tags.get(STAGE_TAG, 'its stage')} again"
