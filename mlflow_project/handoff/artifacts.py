"""Runs of a stage and their files, checked against the digests that the runs recorded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRTError
from lrrt_stage.errors import excerpt, first_line
from lrrt_stage.files import write_text
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.tracking import tags
from mlflow_project.tracking.connection import experiment_id, known_experiment
from mlflow_project.tracking.outbox import sha256
from mlflow_project.tracking.record import get_run, local_file
from mlflow_project.tracking.runs import find_runs
from mlflow_project.tracking.store import StoreUnavailable, ask
from pipeline.data.factories import without_folders

__all__ = [
    "CONTRACT_VERSION",
    "find_run",
    "load_artifact",
    "load_json",
    "read_json",
    "read_weights",
    "readable",
    "run_file",
    "sha256",
    "write_json",
]

T = TypeVar("T")
CONTRACT_VERSION = 2
DEEPEST = 50
"""Levels of a JSON file: what reads it later may recurse."""
LEAST_SPACE = 2**20
"""Bytes: with less, a download may have failed for it, which MLflow does not say."""
LONGEST_NUMBER = 19
"""Digits of a whole number: a longer one fits into no seed and no size."""


def find_run(run_id: str, *stages: str) -> Run:
    """Return the finished run ``run_id`` of one of ``stages``; ``latest`` is the newest."""
    if run_id == "latest":
        found = []
        for stage in stages:
            found += find_runs({tags.STAGE: stage}, finished=True, limit=1)
        if not found:
            name = known_experiment(experiment_id()).name
            raise LRRTError(
                f"experiment {name!r} in {mlflow.get_tracking_uri()} has no "
                f"finished {stages[0]} run: run {stages[0]} first, or name the experiment that has "
                "one with --experiment or MLFLOW_EXPERIMENT_NAME"
            )
        return max(found, key=lambda run: run.info.start_time)
    run = get_run(run_id)
    of_stage = run.data.tags.get(tags.STAGE)
    require(
        of_stage in stages,
        f"run {run_id} is of stage {of_stage and excerpt(of_stage)!r}: give the id of a run of "
        f"{' or '.join(stages)}",
    )
    reason = excerpt(run.data.tags.get(tags.ERROR, "it did not finish"))
    require(
        run.info.status == "FINISHED",
        f"{of_stage} run {run_id} ended {run.info.status} ({reason}): give one that finished",
    )
    return run


def run_file(run: Run, name: str, folder: str | Path) -> Path:
    """Return the artifact ``name``, downloaded into ``folder``; raise LRRTError without one.

    That of a run whose files are still here is not downloaded.
    """
    # MLflow's progress bars would appear in the output that a script prints.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if (here := local_file(run.info.run_id, name)) is not None:
        return here
    try:
        path = ask(
            lambda: mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=name, dst_path=str(folder)
            )
        )
        found = Path(path)
        # A server may list what it likes; only a file of this name, in this folder, is one.
        if not (found.is_file() and found.resolve() == Path(folder).resolve() / name):
            raise FileNotFoundError(name)
    except StoreUnavailable:
        raise
    except Exception as error:  # MLflow's, a client's of the artifact store, or a socket's
        free = shutil.disk_usage(folder).free
        require(
            free > LEAST_SPACE,
            f"artifact {name} of run {run.info.run_id} cannot be downloaded to {folder}, where "
            f"{free} bytes are left: free some space, or name a different folder with TMPDIR",
        )
        raise LRRTError(
            f"run {run.info.run_id} has no artifact {name}: it was deleted, or the artifact store "
            f"cannot be read; {_again(run)}"
        ) from error
    return found


def load_artifact(run: Run, name: str, load: Callable[[Path], T], tag: str | None = None) -> T:
    """Return what ``load`` reads from the artifact ``name``.

    ``tag`` is the run's tag with the SHA-256 of the file; None: the file has no digest.
    """
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        path = run_file(run, name, folder)
        if tag is not None:
            _require_digest(run, name, tag, sha256(path))
        with readable(run, path):
            return load(path)


def write_json(path: Path, content: dict[str, Any]) -> str:
    """Write a JSON file, with dataclasses as objects, and return its SHA-256."""
    text = json.dumps(content, indent=2, default=asdict)
    write_text(path, text + "\n")
    return sha256(path)


def read_json(run: Run, name: str, tag: str) -> dict[str, Any]:
    """Return the content of a JSON artifact, checked against the digest in the tag ``tag``."""

    content = load_artifact(run, name, load_json, tag)
    with readable(run, name):
        version = content["contract_version"]
        require(type(version) is int and version > 0, "contract_version is no number of a version")
    require(
        version <= CONTRACT_VERSION,
        f"run {run.info.run_id} was published with contract version {version}, this lrrt-stage "
        f"knows {CONTRACT_VERSION}: update lrrt-stage",
    )
    return content


def load_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file, without what JSON or its readers leave open.

    That is a key that is given twice, a number too large for what it could be, and, with
    ``finite``, infinity and NaN.

    Raises
    ------
    ValueError
        For such a file, and for one that is no JSON, no object, or too deep.
    """

    def number(text: str) -> float:
        value = float(text)
        require(isfinite(value) or not finite, f"{excerpt(text)} is no finite number")
        return value

    def whole(text: str) -> int:
        require(len(text.lstrip("-")) <= LONGEST_NUMBER, f"{excerpt(text)} is too large a number")
        return int(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        require(len(content) == len(pairs), "a key is given twice")
        return content

    content = json.loads(
        path.read_text(encoding="utf-8"),
        parse_float=number,
        parse_constant=number,
        parse_int=whole,
        object_pairs_hook=unique,
    )
    require(isinstance(content, dict), "it is no JSON object")
    _check_parts(content)
    return content


def _check_parts(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST):
        parts = [[*each, *each.values()] if isinstance(each, dict) else each for each in level]
        level = [item for part in parts for item in part]
        for text in (item for item in level if isinstance(item, str)):
            text.encode()  # half of a pair of code points cannot be stored or printed
            require("\0" not in text, "a text has a zero byte")
        level = [item for item in level if isinstance(item, (dict, list))]
    require(not level, f"it is nested in more than {DEEPEST} levels")


def read_weights(run: Run, name: str, tag: str) -> weights.State:
    """Return the tensors of a safetensors artifact, checked against the digest in ``tag``."""
    state = load_artifact(run, name, weights.load)
    _require_digest(run, name, tag, weights.digest(state))
    return state


def _require_digest(run: Run, name: str, tag: str, digest: str) -> None:
    recorded = run.data.tags.get(tag)
    require(
        recorded == digest,
        f"{name} of run {run.info.run_id} was altered: its digest is {digest[:12]}…, the run "
        f"recorded {excerpt(str(recorded)[:12])}…; {_again(run)}",
    )


@contextmanager
def readable(run: Run, path: str | Path) -> Iterator[None]:
    """Turn any error while the artifact ``path`` is read into one line that names the run."""
    try:
        yield
    except Exception as error:  # a parser's, or that of a missing or unusable value
        # The temporary file is gone when a person reads this.
        cause = f"{type(error).__name__}: {first_line(error)}".replace(str(path), "it")
        cause = excerpt(without_folders(cause))
        raise LRRTError(
            f"{Path(path).name} of run {run.info.run_id} cannot be read ({cause}): it was altered "
            f"or is incomplete; {_again(run)}"
        ) from error


def _again(run: Run) -> str:
    return f"run {excerpt(run.data.tags.get(tags.STAGE, 'its stage'))} again"
