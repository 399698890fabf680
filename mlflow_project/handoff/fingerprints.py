"""What the result of a stage depends on, as a digest: equal ones need not run twice."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from mlflow_project.handoff.artifacts import sha256
from pipeline import PreparedTask, Task
from pipeline.data.factories import import_factory
from pipeline.data.names import is_dataset_factory, is_factory
from pipeline.data.trust import require_trusted
from pipeline.ranks.options import RankOptions

__all__ = ["fingerprint"]


def fingerprint(
    stage: str,
    prepared: PreparedTask,
    *,
    threads: int | None = None,
    to_the_bit: bool = True,
    **inputs: Any,
) -> str:
    """Return a SHA-256 over all that the stage's result depends on.

    That is the task, the data, the device, torch's version, the source of this project and of
    the user's factory modules, a weights file to start from, and ``inputs``: options
    (dataclasses), and ids of upstream runs. ``threads`` is for jobs, which run with one thread.
    Without ``to_the_bit`` the numbers of threads and processes do not count: they change the last
    bits, and of how many examples batch norm takes its statistics.
    """
    ranks = RankOptions() if prepared.ranks is None else prepared.ranks.options
    exact = {"threads": threads or torch.get_num_threads(), "ranks": asdict(ranks)}
    content = {
        "stage": stage,
        "task": asdict(prepared.task),
        "data": prepared.data_digest,
        "device": str(prepared.device),
        "sync_batchnorm": ranks.sync_batchnorm,
        **(exact if to_the_bit else {}),
        "torch": torch.__version__,
        "files": _files(prepared.task),
        **{k: asdict(v) if is_dataclass(v) else v for k, v in inputs.items()},  # type: ignore
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(task: Task) -> list[str]:
    """Return the digests of all files that a result depends on: sources, and given weights."""
    # The stages count as well: they choose the rule and what is handed to each step.
    packages = map(importlib.import_module, ("lrrt_stage", "pipeline", "mlflow_project"))
    folders = [Path(package.__path__[0]) for package in packages]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    named = {kind: getattr(task, kind) for kind in ("setup", "model", "optimizer", "loss")}
    factories = {kind: name for kind, name in named.items() if name and is_factory(name)}
    factories |= {"dataset": task.dataset} if is_dataset_factory(task.dataset) else {}
    for kind, name in factories.items():
        source = inspect.getsourcefile(import_factory(kind, name))
        files += [Path(source)] if source else []
    if task.initial.startswith("file:"):
        require_trusted("init", task.initial)
        given = Path(task.initial.removeprefix("file:"))
        files += [given] if given.is_file() else []
    return [sha256(path) for path in files]
