"""What a range-test run publishes, what a training run takes, and the checks between them."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrrt_stage import LRCurve, LRRange, LRRTError, NoSuggestion, Smoothing, plots, weights
from lrrt_stage.settings import require
from mlflow_project.tracking import ERROR_TAG, STAGE_TAG, experiment_id, get_run
from pipeline import Narrowing, Task, Workbench, build_schedule

__all__ = ["CONTRACT_VERSION", "Handoff", "find_run", "load_handoff", "publish", "run_file"]

CONTRACT_VERSION = 1
WEIGHTS, TASK, CURVE = "initial_weights.safetensors", "task.json", "curve.csv"
SUGGESTIONS, PICTURE, PAGE = "suggestions.json", "lrrt_curve.png", "lrrt_curve.html"
WEIGHTS_TAG, SOURCE_TAG = "lrrt.weights_sha256", "lrrt.source_run_id"
FILE_TAGS = {TASK: "lrrt.task_sha256", SUGGESTIONS: "lrrt.suggestions_sha256"}


@dataclass(frozen=True)
class Handoff:
    """What passes from a range-test run to a training run, checked against its digests."""

    run_id: str
    task: Task
    data_sha256: str
    device: str
    weights: weights.State
    curve: LRCurve
    smoothing: Smoothing
    rule: str
    range: LRRange
    """The range that the chosen rule suggests."""

    @property
    def weights_sha256(self) -> str:
        """Digest of the initial weights."""
        return weights.digest(self.weights)

    def load_weights(self, model: nn.Module) -> None:
        """Copy the initial weights into ``model``.

        Raises
        ------
        LRRTError
            If they do not fit; the message lists the first differences.
        """
        weights.load_into(model, self.weights)

    def narrowed(self, policy: str = "top", fraction: float | None = None) -> LRRange:
        """Return the narrower range to train with."""
        narrowing = Narrowing(policy) if fraction is None else Narrowing(policy, fraction)
        return narrowing(self.range)

    def scheduler(
        self, optimizer: Optimizer, total_steps: int, schedule: str = "one-cycle"
    ) -> LRScheduler:
        """Return torch's scheduler over the narrowed range; call ``step()`` every iteration."""
        return build_schedule(schedule, optimizer, self.narrowed(), total_steps)

    def check(self, task: Task, data_sha256: str | None = None) -> None:
        """Raise LRRTError if ``task`` or its data is not what the range test ran on."""
        differences = task.differences(self.task)
        if not differences and data_sha256 not in (None, self.data_sha256):
            differences = [f"content of dataset {task.dataset!r}"]
        if differences:
            raise LRRTError(
                f"the task differs from range-test run {self.run_id} in "
                f"{'; '.join(differences)}: run lrrt on this task, or pass allow_mismatch=true "
                "to train on purpose with a range that was measured on another"
            )


def publish(
    folder: Path,
    bench: Workbench,
    state: weights.State,
    *,
    curve: LRCurve | None = None,
    smoothing: Smoothing | None = None,
    answers: Mapping[str, LRRange | NoSuggestion] | None = None,
    rule: str = "",
    page: bool = True,
) -> dict[str, str]:
    """Write a range-test run's files into ``folder`` and return its tags.

    Called before the test with the weights and the task alone, and after it with all of it, so
    that the weights are kept however the test ends. Without ``page`` the interactive plot, 5 MB,
    is left out.
    """
    weights.save(state, folder / WEIGHTS)
    _write_json(
        folder / TASK,
        {
            "contract_version": CONTRACT_VERSION,
            "task": asdict(bench.task),
            "data_sha256": bench.data.digest,
            "device": str(bench.device),
            "environment": _environment(bench.device),
        },
    )
    if curve is not None and smoothing is not None and answers is not None:
        curve.to_csv(folder / CURVE, smoothing)
        _write_json(folder / SUGGESTIONS, _suggestions(curve, smoothing, answers, rule))
        plots.curve_figure(curve, answers, rule, smoothing).savefig(folder / PICTURE)
        if page:
            plots.write_page(plots.curve_page(curve, answers, rule, smoothing), folder / PAGE)
    files = {tag: folder / name for name, tag in FILE_TAGS.items()}
    return {
        WEIGHTS_TAG: weights.digest(state),
        **{tag: _sha256(path) for tag, path in files.items() if path.exists()},
    }


def load_handoff(run_id: str = "latest") -> Handoff:
    """Return the hand-off of a finished range-test run: by id, or the experiment's latest.

    Raises
    ------
    LRRTError
        If there is no such run, it is of another stage or did not finish, an artifact is
        missing, or one does not match the digest that the run recorded.
    """
    run = find_run(run_id, "lrrt")
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        state = weights.load(run_file(run, WEIGHTS, folder))
        _require_digest(run, WEIGHTS, WEIGHTS_TAG, weights.digest(state))
        published = _read_json(run, TASK, folder)
        suggestions = _read_json(run, SUGGESTIONS, folder)
        require(
            suggestions["range"] is not None,
            f"run {run_id} is a test without a suggestion of its rule {suggestions['rule']}: give "
            "another test of its study, or run lrrt on its task with another rule",
        )
        curve = LRCurve.from_csv(
            run_file(run, CURVE, folder),
            stop=suggestions["curve"]["stop"],
            epochs=suggestions["curve"]["epochs"],
        )
    return Handoff(
        run_id=run.info.run_id,
        task=Task.from_json(json.dumps(published["task"])),
        data_sha256=published["data_sha256"],
        device=published["device"],
        weights=state,
        curve=curve,
        smoothing=Smoothing(**suggestions["smoothing"]),
        rule=suggestions["rule"],
        range=LRRange(**suggestions["range"]),
    )


def find_run(run_id: str, stage: str) -> Run:
    """Return the finished run ``run_id`` of ``stage``; ``latest``: the newest in the experiment.

    A study's test, named by its id, counts as a run of stage ``lrrt``.

    Raises
    ------
    LRRTError
        If there is none; the message says what was found instead.
    """
    if run_id == "latest":
        client, experiment = mlflow.MlflowClient(), experiment_id()
        found = client.search_runs(
            [experiment],
            f"tags.`{STAGE_TAG}` = '{stage}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        name = client.get_experiment(experiment).name
        require(bool(found), f"experiment {name!r} has no finished {stage} run: run {stage} first")
        return found[0]
    run = get_run(run_id)
    of_stage = run.data.tags.get(STAGE_TAG)
    require(
        of_stage == stage or (of_stage, stage) == ("test", "lrrt"),
        f"run {run_id} is of stage {of_stage!r}, not {stage!r}: give a {stage} run's id, or latest",
    )
    reason = run.data.tags.get(ERROR_TAG, "it did not finish")
    require(
        run.info.status == "FINISHED",
        f"{stage} run {run_id} ended {run.info.status} ({reason}): give one that finished",
    )
    return run


def run_file(run: Run, name: str, folder: str | Path) -> Path:
    """Download the artifact ``name`` into ``folder``; raise LRRTError if the run has none."""
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path=name, dst_path=str(folder)
        )
    except (MlflowException, OSError) as error:
        raise LRRTError(
            f"run {run.info.run_id} has no artifact {name}: it was deleted, or the artifact store "
            f"cannot be read; run lrrt again"
        ) from error
    return Path(path)


def _suggestions(
    curve: LRCurve,
    smoothing: Smoothing,
    answers: Mapping[str, LRRange | NoSuggestion],
    rule: str,
) -> dict[str, Any]:
    chosen = answers.get(rule)
    return {
        "contract_version": CONTRACT_VERSION,
        "rule": rule,
        "range": asdict(chosen) if isinstance(chosen, LRRange) else None,
        "rules": {
            name: asdict(answer) if isinstance(answer, LRRange) else {"no_suggestion": str(answer)}
            for name, answer in answers.items()
        },
        "smoothing": asdict(smoothing),
        "curve": {"stop": curve.stop, "iterations": len(curve), "epochs": curve.epochs},
    }


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


def _read_json(run: Run, name: str, folder: str) -> dict[str, Any]:
    path = run_file(run, name, folder)
    _require_digest(run, name, FILE_TAGS[name], _sha256(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    theirs = content["contract_version"]
    require(
        theirs <= CONTRACT_VERSION,
        f"run {run.info.run_id} was published with contract version {theirs}, this lrrt-stage "
        f"knows {CONTRACT_VERSION}: update lrrt-stage",
    )
    return content


def _require_digest(run: Run, name: str, tag: str, digest: str) -> None:
    recorded = run.data.tags.get(tag)
    require(
        recorded == digest,
        f"{name} of run {run.info.run_id} was altered: its digest is {digest[:12]}…, the run "
        f"recorded {str(recorded)[:12]}…; run lrrt again",
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
