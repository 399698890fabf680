"""How runs are opened, named, and closed, and how series, ranges, and files are logged."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lrrt_stage import Consensus, LRCurve, LRRange, LRRTError, Reading, Smoothing
from lrrt_stage.errors import text_of
from lrrt_stage.settings import hide_passwords, require
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.connection import experiment_id, project_run, store_uri
from mlflow_project.tracking.environment import RUN_ID
from mlflow_project.tracking.outbox import run_of_uuid
from mlflow_project.tracking.params import log_params, shown
from mlflow_project.tracking.record import (
    RunRecord,
    active_record,
    begin_anew,
    enclosing_record,
    known_record,
    refused,
    unsent_records,
)
from mlflow_project.tracking.store import PATIENCE, ask, reason_of
from mlflow_project.tracking.views import save_view
from pipeline import PreparedTask
from pipeline.training.loop import Epoch, TrainingHistory

__all__ = [
    "fail_project_run",
    "find_runs",
    "log_curve",
    "log_prepared",
    "log_range",
    "log_reading",
    "log_training",
    "name_run",
    "read_training",
    "require_resumable",
    "stage_run",
]

LONGEST_TAG = 5000
SPARSE = ("probe_loss", "probe_baseline", "full_val_loss")
"""Series of a curve that have no value at some iterations."""
MADE_UP_NAME = re.compile("[a-z]+-[a-z]+-[0-9]+", re.IGNORECASE)
"""The form of the names that MLflow makes up."""


def require_resumable(run: Run, fingerprint: str, tag: str = tags.FINGERPRINT) -> None:
    """Raise LRRTError unless the active run can continue a run that did not finish.

    ``tag`` is the one that has the ``fingerprint``.
    """
    run_id = run.info.run_id
    found, stage = run.data.tags.get(tags.STAGE), active_record().tags[tags.STAGE]
    require(
        found == stage,
        f"run {run_id} is of stage {found!r}, which {stage} cannot resume: give the id of an "
        f"interrupted {stage}; objects in hand become a {stage} by --setup package.module:factory",
    )
    require(
        run.data.tags.get(tag) == fingerprint,
        f"run {run_id} cannot be resumed: it was not started with these options and this code; "
        "give the options that it was started with",
    )
    require(
        run.info.status != "FINISHED",
        f"run {run_id} is finished and cannot be resumed: leave resume out",
    )


def find_runs(
    having: Mapping[str, str],
    *,
    finished: bool = False,
    experiment: str | None = None,
    limit: int = 10_000,
) -> list[Run]:
    """Return the runs of an experiment that have these tags, newest first.

    Without ``experiment`` it is the experiment that runs go to. Once the work of a stage has begun,
    a store that does not answer has none: what would be reused is done again.
    """
    conditions = [f"tags.`{tag}` = '{value}'" for tag, value in having.items()]
    if finished:
        conditions.append("attributes.status = 'FINISHED'")
    search = partial(
        mlflow.MlflowClient().search_runs,
        [experiment or ask(experiment_id)],
        " and ".join(conditions),
        max_results=limit,
        order_by=["attributes.start_time DESC"],
    )
    try:
        return list(ask(search))
    except (LRRTError, MlflowException) as error:
        outer = enclosing_record()
        if outer is None or not outer.is_working:
            raise
        console.note(f"no earlier run can be looked for: {reason_of(error)}")
        return []


@contextmanager
def stage_run(
    stage: str, name: str = "", *, keeps_children: bool = False, parent_run_id: str | None = None
) -> Iterator[RunRecord]:
    """Open the run of a stage: that of ``mlflow run`` where there is one, else a new one.

    Inside the run of a different stage, or where ``mlflow run`` runs an entry point of a different
    project, it is a child of that run. It ends FINISHED, KILLED on Ctrl-C, or FAILED with the
    reason as the tag ``lrrt.error``. ``name`` is that of :func:`name_run`. With ``keeps_children``,
    files of its child runs stay on disk until it ends, so that it can read them at any time.
    A run inside another one is a child of ``parent_run_id`` in the store, where that is given.
    """
    if enclosing_record() is None:
        begin_anew()
    active = mlflow.active_run()
    project = ask(project_run) if active is None else None
    of_project = os.environ.get(RUN_ID)
    if active or project:
        os.environ.pop(RUN_ID, None)  # else start_run() would resume that run
    record = _open_record(active, project, stage, parent_run_id)
    status = "FAILED"
    try:
        record.keeps_children = keeps_children
        record.set_tags({tags.STAGE: stage} | _name_tag(record, stage, name))
        if active is None:
            save_view(record.run.info.experiment_id)
        yield record
        status = "FINISHED"
    except KeyboardInterrupt as interrupt:
        status = "KILLED"
        PATIENCE.hurry()
        _clear_frames(interrupt)
        record.give_up(str(interrupt) or "interrupted")
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, LRRTError) else f"{type(error).__name__}: "
        text = kind + text_of(error)
        record.give_up(hide_passwords(" ".join(text.split()))[:LONGEST_TAG])
        raise
    finally:
        try:
            record.close(status)
        finally:
            if enclosing_record() is None:
                _note_unsent()
        takes_over = project is not None and record.run_id == project.info.run_id
        if of_project and not takes_over:  # for the next stage of this process
            os.environ[RUN_ID] = of_project


def _note_unsent() -> None:
    """Say what of this process is only on disk, and how it gets to the store."""
    if records := unsent_records():
        ids = ", ".join(each.run_id for each in records[:3])
        more = f" and {len(records) - 3} more" if len(records) > 3 else ""
        lost = []
        for each in records:
            with suppress(OSError):
                each.outbox.write_all()
            lost += each.outbox.unwritten()
        first, store = records[0], store_uri()
        path = first.folder if len(records) == 1 else first.folder.parent
        where = "" if "***" in store else f" --tracking-uri {shlex.quote(store)}"
        console.note(
            f"{store} has not taken all of run {ids}{more} ({first.outbox.reason}): it is kept, "
            f"lrrt-stage sync {shlex.quote(str(path))}{where} sends it"
        )
        if lost:
            console.note(
                f"{len(lost)} requests could not be written to {path}, and are lost: free some "
                "space, and run the stage again"
            )


def _open_record(
    active: Run | None, project: Run | None, stage: str, parent_run_id: str | None
) -> RunRecord:
    """Open the run in the store; inside a stage whose store is away, on disk alone."""
    outer, parent = enclosing_record(), active or project
    own_id = project.info.run_id if project is not None and _belongs_to(project, stage) else None
    experiment = parent.info.experiment_id if parent is not None else ask(experiment_id)
    record = RunRecord(stage, experiment, outer, parent_run_id)
    is_elsewhere = outer is not None and parent_run_id not in (None, outer.run_id)
    options: dict[str, Any] = {
        "experiment_id": experiment,
        "tags": {tags.UUID: record.uuid, tags.STAGE: stage},
    }
    if parent is not None:
        options |= {"nested": True, "parent_run_id": parent.info.run_id}
    tried: list[bool] = []

    def made() -> str | None:
        """Return the id of the run that an earlier request has made, if its answer was lost."""
        run = run_of_uuid(record.uuid, experiment) if tried else None
        return None if run is None else str(run.info.run_id)

    def start() -> Run:
        if own_id is not None:
            return mlflow.start_run(own_id)
        run_id = made()
        tried.append(True)
        if is_elsewhere and run_id is None:
            # MLflow itself makes children of the active run alone.
            parts = options["tags"] | {MLFLOW_PARENT_RUN_ID: parent_run_id}
            client = mlflow.MlflowClient()
            run_id = client.create_run(experiment, tags=resolve_tags(parts)).info.run_id
        return mlflow.start_run(run_id, **options)

    try:
        if record.is_working and outer is not None and outer.is_offline:
            return record
        run = PATIENCE.attempt(start) if record.is_working else ask(start)
    except BaseException as error:
        if isinstance(error, Exception) and record.is_working:
            return record
        _undo(record, active, made)
        if isinstance(error, Exception):
            raise refused("run", error) from error
        raise
    try:
        record.use(run)
    except BaseException:
        _undo(record, active, made)
        raise
    return record


def _undo(record: RunRecord, active: Run | None, made: Callable[[], str | None]) -> None:
    """End a run that was not opened completely, and forget it."""
    PATIENCE.hurry()
    is_ended = False
    try:
        with suppress(Exception):
            if mlflow.active_run() is not active:
                PATIENCE.attempt(lambda: mlflow.end_run("KILLED"))
            elif (run_id := PATIENCE.attempt(made)) is not None:
                client = mlflow.MlflowClient()
                PATIENCE.attempt(lambda: client.set_terminated(run_id, "KILLED"))
            is_ended = True
    finally:
        record.drop(is_ended=is_ended)


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
    record = active_record()
    if tag := _name_tag(record, record.tags[tags.STAGE], name):
        record.set_tags(tag)


def _name_tag(record: RunRecord, stage: str, name: str) -> dict[str, str]:
    made_up = record.is_offline or MADE_UP_NAME.fullmatch(record.run.info.run_name or "")
    return {"mlflow.runName": f"{stage} {name}"} if name and made_up else {}


def fail_project_run(stage: str, reason: str) -> None:
    """Mark the run that ``mlflow run`` opened as FAILED, if it is the stage's and not open yet."""
    run = PATIENCE.attempt(project_run)
    if run is not None and _belongs_to(run, stage):
        client, run_id = mlflow.MlflowClient(), run.info.run_id
        PATIENCE.attempt(lambda: client.set_tag(run_id, tags.ERROR, reason))
        PATIENCE.attempt(lambda: client.set_terminated(run_id, "FAILED"))


def log_training(training: TrainingHistory, first_iteration: int = 0, first_epoch: int = 0) -> None:
    """Log a training from an iteration and an epoch on, with one value per iteration or epoch."""
    record = active_record()
    series = {"lr": training.lr, "train_loss": training.train_loss}
    new = {name: values[first_iteration:] for name, values in series.items()}
    epochs = training.epochs[first_epoch:]
    rows = [epoch.values() for epoch in epochs]
    validation = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    with record.bundle():
        record.log_series(new, range(first_iteration, len(training.train_loss)))
        record.log_series(validation, [epoch.iteration for epoch in epochs])


def read_training(run_id: str) -> TrainingHistory:
    """Return the losses and learning rates that :func:`log_training` logged."""
    names, record = ("lr", "train_loss", "val_loss", "attempt"), known_record(run_id)
    if record is not None:
        logged = [[m for m in record.metrics if m.key == name] for name in names]
    else:
        client = mlflow.MlflowClient()
        logged = [ask(partial(client.get_metric_history, run_id, name)) for name in names]
    lr, train_loss, val_loss, attempts = logged
    return TrainingHistory(
        [point.value for point in lr],
        [point.value for point in train_loss],
        [Epoch(point.step, point.value) for point in val_loss],
        sorted({0, *(point.step for point in attempts)}),
    )


def log_range(name: str, lr_range: LRRange, step: int = 0) -> None:
    """Log a range of the active run as ``<name>_lr_min`` and ``<name>_lr_max``.

    The value of a later ``step`` is the one that counts.
    """
    metrics = {f"{name}_lr_min": [lr_range.min], f"{name}_lr_max": [lr_range.max]}
    active_record().log_series(metrics, [step])


def log_curve(curve: LRCurve, smoothing: Smoothing) -> None:
    """Log learning rates and losses, one value per iteration, evaluations where there are some.

    ``log10_lr`` is for the UI's charts, which draw one metric over a different one only on a
    linear axis.
    """
    record = active_record()
    frame = curve.to_frame(smoothing).rename(columns={"loss": "train_loss"}).set_index("iteration")
    frame["log10_lr"] = np.log10(frame["lr"])
    with record.bundle():
        whole = {name: frame[name].tolist() for name in map(str, frame) if name not in SPARSE}
        record.log_series(whole, frame.index.tolist())
        for name in filter(frame.__contains__, SPARSE):
            values = frame[name].dropna()
            record.log_series({name: values.tolist()}, values.index.tolist())


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
    record = active_record()
    record.log_metrics(scalars)
    stop, verdict = reading.curve.stop, reading.verdict
    record.set_tags({"lrrt.stop": stop, tags.RULE: reading.rule, tags.VERDICT: verdict})


def log_prepared(prepared: PreparedTask) -> None:
    """Log the device as a parameter, and the training data, by name and digest, as an input."""
    log_params({"device": str(prepared.device)})
    if prepared.ranks is not None:
        log_params(asdict(prepared.ranks.options))
    task = prepared.task
    source = CodeDatasetSource(tags={"dataset": task.setup or shown(task.dataset)})
    # MLflow keeps 36 characters of a digest.
    digest = prepared.data_digest[:32]
    dataset = MetaDataset(source, name=task.data_name, digest=digest)  # type: ignore[abstract]
    active_record().log_input(dataset)
