"""How runs are opened, named, and closed, and how series, ranges, and files are logged."""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from lrrt_stage import Consensus, LRCurve, LRRange, LRRTError, Reading, Smoothing
from lrrt_stage.settings import hide_passwords, require
from mlflow_project.tracking import tags
from mlflow_project.tracking.connection import (
    RUN_ID,
    active_run,
    active_run_id,
    experiment_id,
    project_run,
)
from mlflow_project.tracking.params import log_params, shown
from mlflow_project.tracking.views import save_view
from pipeline import PreparedTask
from pipeline.training.loop import Epoch, TrainingHistory

__all__ = [
    "fail_project_run",
    "find_runs",
    "get_run",
    "log_curve",
    "log_dataset",
    "log_prepared",
    "log_range",
    "log_reading",
    "log_training",
    "name_run",
    "read_training",
    "resumed_run",
    "stage_run",
    "staged_files",
]

MADE_UP_NAME = re.compile("[a-z]+-[a-z]+-[0-9]+", re.IGNORECASE)
"""The form of the names that MLflow makes up."""


def get_run(run_id: str) -> Run:
    """Return a run; raise LRRTError if the store has none of this id, or it was deleted."""
    require(
        isinstance(run_id, str) and run_id != "",
        f"{run_id!r} is no id of a run: give the id, as the MLflow UI shows it",
    )
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise LRRTError(
            f"there is no run {run_id!r} in {mlflow.get_tracking_uri()} ({error.error_code}): "
            "check the id and the tracking URI"
        ) from None
    require(
        run.info.lifecycle_stage == LifecycleStage.ACTIVE,
        f"run {run_id} was deleted: give a different one, or restore it with mlflow runs restore "
        f"--run-id {run_id}",
    )
    return run


def resumed_run(run_id: str, fingerprint: str) -> Run:
    """Return a run that did not finish; raise LRRTError if it has not this fingerprint."""
    run = get_run(run_id)
    found, stage = run.data.tags.get(tags.STAGE), active_run().data.tags[tags.STAGE]
    require(
        found == stage,
        f"run {run_id} is of stage {found!r}, which {stage} cannot resume: give the id of an "
        f"interrupted {stage}; objects in hand become a {stage} by --setup package.module:factory",
    )
    require(
        run.data.tags.get(tags.FINGERPRINT) == fingerprint,
        f"run {run_id} cannot be resumed: it was not started with these options and this code; "
        "give the options that it was started with",
    )
    require(
        run.info.status != "FINISHED",
        f"run {run_id} is finished and cannot be resumed: leave resume out",
    )
    return run


def find_runs(
    having: Mapping[str, str],
    *,
    finished: bool = False,
    experiment: str | None = None,
    limit: int = 10_000,
) -> list[Run]:
    """Return the runs of an experiment that have these tags, newest first.

    Without ``experiment`` it is the experiment that runs go to.
    """
    conditions = [f"tags.`{tag}` = '{value}'" for tag, value in having.items()]
    if finished:
        conditions.append("attributes.status = 'FINISHED'")
    return list(
        mlflow.MlflowClient().search_runs(
            [experiment or experiment_id()],
            " and ".join(conditions),
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
    )


@contextmanager
def stage_run(stage: str, name: str = "") -> Iterator[Run]:
    """Open the run of a stage: that of ``mlflow run`` where there is one, else a new one.

    Inside the run of a different stage, or where ``mlflow run`` runs an entry point of a different
    project, it is a child of that run. It ends FINISHED, KILLED on Ctrl-C, or FAILED with the
    reason as the tag ``lrrt.error``. ``name`` is that of :func:`name_run`.
    """
    active = mlflow.active_run()
    project = project_run() if active is None else None
    takes_over = project is not None and _belongs_to(project, stage)
    of_project = os.environ.get(RUN_ID)
    if active or project:
        os.environ.pop(RUN_ID, None)  # else start_run() would resume that run
    if project is not None and takes_over:
        run = mlflow.start_run(project.info.run_id)
    elif parent := active or project:
        run = mlflow.start_run(
            experiment_id=parent.info.experiment_id, parent_run_id=parent.info.run_id, nested=True
        )
    else:
        run = mlflow.start_run()
    status = "FAILED"
    try:
        mlflow.set_tag(tags.STAGE, stage)
        if name:
            name_run(name)
        if active is None:
            save_view(run.info.experiment_id)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt as interrupt:
        status = "KILLED"
        _clear_frames(interrupt)
        mlflow.set_tag(tags.ERROR, str(interrupt) or "interrupted")
        raise
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, LRRTError) else f"{type(error).__name__}: {error}"
        mlflow.set_tag(tags.ERROR, hide_passwords(" ".join(text.split())[:5000]))
        raise
    finally:
        mlflow.end_run(status)
        if of_project and not takes_over:  # for the next stage of this process
            os.environ[RUN_ID] = of_project


def _belongs_to(project: Run, stage: str) -> bool:
    """Return whether the run of ``mlflow run`` is that of the stage, which has not taken it yet.

    Otherwise it belongs to a different project, whose entry point calls the stage.
    """
    logged = project.data.tags
    return logged.get("mlflow.project.entryPoint", stage) == stage and tags.STAGE not in logged


def _clear_frames(error: BaseException | None) -> None:
    """Clear the frames of an error and of its causes.

    After an interrupt during a query, they hold a cursor that keeps SQLite's file locked.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def name_run(name: str) -> None:
    """Name the active run after its stage and ``name``, unless the user has named it."""
    run = active_run()
    if MADE_UP_NAME.fullmatch(run.info.run_name or ""):
        mlflow.set_tag("mlflow.runName", f"{run.data.tags[tags.STAGE]} {name}")


def fail_project_run(stage: str, reason: str) -> None:
    """Mark the run that ``mlflow run`` opened as FAILED, if it is the stage's and not open yet."""
    run = project_run()
    if run is not None and _belongs_to(run, stage):
        client = mlflow.MlflowClient()
        client.set_tag(run.info.run_id, tags.ERROR, reason)
        client.set_terminated(run.info.run_id, "FAILED")


def _log_series(series: Mapping[str, Sequence[float]], steps: Sequence[int]) -> None:
    """Log whole series; ``steps`` are the iterations of their values, the same for all."""
    now = get_current_time_millis()
    metrics = [
        Metric(name, float(value), now, step)
        for name, values in series.items()
        for step, value in zip(steps, values, strict=True)
    ]
    mlflow.MlflowClient().log_batch(active_run_id(), metrics=metrics)


def log_training(training: TrainingHistory, first_iteration: int = 0, first_epoch: int = 0) -> None:
    """Log a training from an iteration and an epoch on, with one value per iteration or epoch."""
    series = {"lr": training.lr, "train_loss": training.train_loss}
    steps = range(first_iteration, len(training.train_loss))
    _log_series({name: values[first_iteration:] for name, values in series.items()}, steps)
    epochs = training.epochs[first_epoch:]
    rows = [epoch.values() for epoch in epochs]
    validation = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    _log_series(validation, [epoch.iteration for epoch in epochs])


def read_training(run_id: str) -> TrainingHistory:
    """Return the losses and learning rates that :func:`log_training` logged."""
    client = mlflow.MlflowClient()
    lr, train_loss, val_loss = (
        client.get_metric_history(run_id, name) for name in ("lr", "train_loss", "val_loss")
    )
    return TrainingHistory(
        [point.value for point in lr],
        [point.value for point in train_loss],
        [Epoch(point.step, point.value) for point in val_loss],
    )


def log_range(name: str, lr_range: LRRange) -> None:
    """Log a range of the active run as ``<name>_lr_min`` and ``<name>_lr_max``."""
    mlflow.log_metrics({f"{name}_lr_min": lr_range.min, f"{name}_lr_max": lr_range.max})


@contextmanager
def staged_files() -> Iterator[Path]:
    """Yield an empty folder; what is in it at the end, also after an error, becomes artifacts."""
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        try:
            yield Path(folder)
        finally:
            if any(Path(folder).iterdir()):
                mlflow.log_artifacts(folder)


def log_curve(curve: LRCurve, smoothing: Smoothing) -> None:
    """Log learning rates and losses, one value per iteration.

    ``log10_lr`` is for the UI's charts, which draw one metric over a different one only on a
    linear axis.
    """
    frame = curve.to_frame(smoothing).rename(columns={"loss": "train_loss"})
    frame["log10_lr"] = np.log10(frame["lr"])
    steps = frame.pop("iteration")
    evaluations = frame.pop("full_val_loss").dropna() if "full_val_loss" in frame else None
    _log_series({str(name): frame[name].tolist() for name in frame}, steps.tolist())
    if evaluations is not None:
        _log_series({"full_val_loss": evaluations.tolist()}, steps[evaluations.index].tolist())


def log_reading(reading: Reading) -> None:
    """Log the suggestions of all rules, and the final range with its verdict, of the active run."""
    scalars = {
        f"suggestion.{rule}": suggestion.range.max
        for rule, suggestion in reading.suggestions.items()
        if suggestion.range is not None
    }
    if reading.curve.epochs is not None:
        scalars["range_test_epochs"] = reading.curve.epochs
    if isinstance(reading.consensus, Consensus):
        scalars["consensus_decades"] = reading.consensus.decades
    final = reading.final
    if final.range is not None:
        scalars["suggestion_decades"] = final.confidence.decades
        log_range("suggested", final.range)
    mlflow.log_metrics(scalars)
    stop, verdict = reading.curve.stop, reading.verdict
    mlflow.set_tags({"lrrt.stop": stop, tags.RULE: reading.rule, tags.VERDICT: verdict})


def log_prepared(prepared: PreparedTask) -> None:
    """Log the device as a parameter, and the training data, by name and digest, as an input."""
    log_params({"device": str(prepared.device)})
    task = prepared.task
    source = CodeDatasetSource(tags={"dataset": task.setup or shown(task.dataset)})
    # MLflow keeps 36 characters of a digest.
    digest = prepared.data_digest[:32]
    log_dataset(MetaDataset(source, name=task.data_name, digest=digest))  # type: ignore[abstract]


def log_dataset(dataset: Dataset) -> None:
    """Log a dataset as what the active run trains on."""
    try:
        mlflow.log_input(dataset, context="training")
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        # Another run has added the same dataset between MLflow's query and its insertion.
        mlflow.log_input(dataset, context="training")
