"""The run of a stage, and what it logs: to the tracking store, or else to disk for later.

A run has a folder ``RUN_ID`` in the work folder, ``.lrrt`` by default, with

- ``run.json``: which run of which store it is, its tags, and how it ended;
- ``files``: what becomes the artifacts of the run;
- ``outbox``: what the store has not taken yet, a file per request, in their order;
- ``lock``, which the process of the run holds: the system releases it, however the process ends.

The folder is removed when the store has everything. Until the outermost run of a command has ended,
the folders of all runs inside it are held by its process.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import mlflow.tracking.fluent as fluent
from filelock import FileLock, Timeout
from mlflow.data.dataset import Dataset
from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.time import get_current_time_millis

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.files import expanded
from lrrt_stage.settings import require
from mlflow_project.tracking import tags
from mlflow_project.tracking.connection import store_uri
from mlflow_project.tracking.environment import WORK_DIR, OutageOptions
from mlflow_project.tracking.outbox import UNSENT, Outbox, Request, RunState
from mlflow_project.tracking.senders import FILES
from mlflow_project.tracking.store import PATIENCE, StoreUnavailable, ask, reason_of
from pipeline.task.tasks import CACHE

__all__ = [
    "InUse",
    "RunRecord",
    "active_record",
    "begin_anew",
    "enclosing_record",
    "get_run",
    "hold",
    "known_record",
    "local_file",
    "refused",
    "remove_folder",
    "unsent_records",
    "use_outage_options",
    "work_folder",
]

NAME, LOCK = ".lrrt", "lock"
IGNORE, IGNORED = ".gitignore", "# made by lrrt-stage\n*\n"


class _Records(threading.local):
    """The records of a thread, as MLflow has a stack of active runs for every thread."""

    def __init__(self) -> None:
        self.open: list[RunRecord] = []
        """Those that are not closed, the innermost last."""
        self.all: list[RunRecord] = []
        """Those whose folders are there."""


_records = _Records()


class InUse(LRRTError):
    """A run's folder belongs to another process, which uses it, or has sent and removed it."""


class RunRecord:
    """The run of a stage, and what it logs.

    It begins on disk alone, so that a run whose process is killed is found, and becomes that of the
    store with :meth:`use`. What is logged before :meth:`begin_work` is sent there, as one request,
    and a store that does not take it ends the stage, unless the work of an outer stage has begun.
    From then on it is sent at once, or at the end of a :meth:`bundle`, and what the store does not
    take is kept in the run's folder.
    """

    def __init__(
        self,
        stage: str,
        experiment_id: str,
        parent: RunRecord | None,
        parent_run_id: str | None = None,
    ) -> None:
        self.uuid, self.parent = uuid4().hex, parent
        first = {tags.UUID: self.uuid, MLFLOW_RUN_NAME: stage}
        if parent is not None:
            first[MLFLOW_PARENT_RUN_ID] = parent_run_id or parent.run_id
        state = RunState(
            *(f"{UNSENT}{self.uuid}", experiment_id, stage, get_current_time_millis()),
            store_uri(),
            tags=resolve_tags(first),
        )
        self.run = state.as_run(artifact_uri="")
        self.params, self.metrics = dict[str, str](), list[Metric]()
        self.children: list[RunRecord] = []
        self.keeps_children = False
        """Whether the folders of children stay until this run ends, which reads files of them."""
        self.is_working: bool = parent is not None and parent.is_working
        """Whether :meth:`begin_work` was called, of this run or of an outer one."""
        self._has_begun = False
        """Whether it was called of this run."""
        self._bundles = 0
        """How many blocks of :meth:`bundle` are open."""
        self._last: Request | None = None
        """The last request of the bundle, or of what is logged before the work."""
        self._is_kept = False
        """Whether all that the run has logged was sent, or is among the requests."""
        self.folder = work_folder() / state.run_id
        self.outbox = Outbox(self.folder, state)
        try:
            _make_work_folder(self.folder.parent)
            self.files.mkdir(parents=True)
            self._lock = hold(self.folder)
            self.outbox.write_state()
        except OSError as error:
            raise _unusable(self.folder, error) from error
        if parent is not None:
            parent.children.append(self)
        _records.open.append(self)
        _records.all.append(self)

    def use(self, run: Run) -> None:
        """Use the run that the store has opened; its id is then the name of the folder."""
        self.run, self.params, info = run, dict(run.data.params), run.info
        state = self.outbox.state
        self.outbox.artifact_uri = info.artifact_uri or ""
        state.run_id, state.experiment_id = info.run_id, info.experiment_id
        state.run_name, state.start_time = info.run_name or "", info.start_time
        state.tags = dict(run.data.tags)
        try:
            if os.name == "nt":  # where a folder with an open file cannot be renamed
                self._lock.release()
            self.folder = self.outbox.folder = self.folder.rename(self.folder.parent / info.run_id)
            if os.name == "nt":
                self._lock = hold(self.folder)
            self.outbox.write_state()
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def drop(self, *, is_ended: bool) -> None:
        """Forget a run that was not opened; its folder tells the next command of one that runs."""
        _records.open.remove(self)
        _records.all.remove(self)
        if self.parent is not None:
            self.parent.children.remove(self)
        self._lock.release()
        if is_ended:
            remove_folder(self.folder)

    @property
    def run_id(self) -> str:
        """The id that the store gave the run; one of its own until then."""
        return self.outbox.state.run_id

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the run."""
        return self.outbox.state.tags

    @property
    def files(self) -> Path:
        """The folder whose files become artifacts when the run ends."""
        return self.folder / FILES

    def as_run(self) -> Run:
        """Return the run as far as this process knows it, without a request."""
        info, last = self.run.info, {metric.key: metric for metric in self.metrics}
        more = {"user_id": info.user_id, "end_time": info.end_time}
        more |= {"artifact_uri": info.artifact_uri}
        return self.outbox.state.as_run([*last.values()], self.params, **more)

    @property
    def is_offline(self) -> bool:
        """Whether the run was opened while the store was away."""
        return str(self.run.info.run_id).startswith(UNSENT)

    def begin_work(self) -> Path:
        """Send what was logged, and keep from now on what the store does not take.

        Returns the folder of the files.
        """
        if self.is_working:
            self._send()
        else:
            try:
                ask(self.outbox.send_first)
            except Exception as error:
                raise refused("tag or parameter", error) from error
        self.is_working = self._has_begun = True
        return self.files

    def give_up(self, reason: str) -> None:
        """Set the tag with the reason for which the stage ends, which may be the store."""
        is_early, self._last = not self.is_working, None
        self.is_working = self._has_begun = True
        self.set_tags({tags.ERROR: reason})
        if is_early:  # no work depends on it, and the reason counts
            self.outbox.drop_refused()

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.outbox.state.tags |= values
        self.outbox.save()
        self._log("log", tags=dict(values))

    def log_params(self, values: Mapping[str, str]) -> None:
        """Log parameters, except those that the run has already."""
        new = {name: value for name, value in values.items() if name not in self.params}
        self.params |= new
        if new:
            self._log("log", params=new)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics that have one value."""
        self.log_series({name: [value] for name, value in values.items()}, [0])

    def log_series(self, series: Mapping[str, Sequence[float]], steps: Sequence[int]) -> None:
        """Log whole series; ``steps`` are the iterations of their values, the same for all."""
        now = get_current_time_millis()
        points = [
            (name, float(value), now, step)
            for name, values in series.items()
            for step, value in zip(steps, values, strict=True)
        ]
        self.metrics += [Metric(*point) for point in points]
        if points:
            self._log("log", metrics=points)

    def log_input(self, dataset: Dataset) -> None:
        """Log a dataset as what the run trains on."""
        self._log("input", dataset=dict(dataset._to_mlflow_entity()))

    def log_file(self, name: str) -> None:
        """Make the file ``name`` of :attr:`files` an artifact now; others are sent at the end."""
        self.outbox.logged.add(name)
        self._log("file", name=name)

    def log_signed(self, message: str, mac: str) -> None:
        """Sign the run when the store has given it an id, as :mod:`..handoff.signature` does."""
        self._log("signature", message=message, mac=mac)

    def log_model(self, step: int, **content: Any) -> None:
        """Log the model that was saved in the run's folder, with the validation at a step."""
        points = [
            (each.key, each.value, each.timestamp, each.step)
            for each in self.metrics
            if each.key.startswith("val_") and each.step == step
        ]
        self.outbox.keep("model", metrics=points, **content)

    @contextmanager
    def bundle(self) -> Iterator[None]:
        """Send what is logged in the block when it ends, in as few requests as possible."""
        self._bundles += 1
        try:
            yield
        finally:
            self._bundles -= 1
        # After an error, the end of the run sends it.
        if self.is_working and not self._bundles:
            self._send()

    def _send(self) -> None:
        self._last = None  # while the store is away, one request would grow and grow
        self.outbox.send()

    def _log(self, kind: str, **content: Any) -> None:
        if self.is_working or kind == "log":
            self._last = self.outbox.keep(kind, extend=self._last, **content)
            if self._has_begun and not self._bundles:
                self._send()
            return
        try:
            ask(partial(self.outbox.request, kind, **content))
        except Exception as error:
            raise refused(kind, error) from error

    def close(self, status: str) -> None:
        """End the run: send what is left, or keep it."""
        outbox = self.outbox
        try:
            outbox.state.status = status
            outbox.save()
            outbox.keep_files()
            outbox.keep("end", status=status, time=get_current_time_millis())
            self._is_kept = True
            self._settle()
            if outbox.requests:
                outbox.tell_unsent()
        finally:
            _leave_active(str(self.run.info.run_id))
            _records.open.remove(self)
            if self.parent is None or not self.parent.keeps_children:
                self._leave(is_outermost=self.parent is None)

    def _settle(self) -> None:
        with suppress(Exception):  # which the children name
            self.outbox.open_run()
        for child in self.children:
            child._settle()
        self.outbox.settle()

    def _leave(self, *, is_outermost: bool) -> None:
        """Remove the folders of this run and those inside it that the store has completely.

        The outermost run also lets go of the others.
        """
        for child in self.children:
            child._leave(is_outermost=is_outermost)
        is_sent = self._is_kept and not self.outbox.requests
        if is_sent or is_outermost:
            self._lock.release()
        if is_sent and self in _records.all:
            _records.all.remove(self)
            remove_folder(self.folder)


def _leave_active(run_id: str) -> None:
    """Do what ``mlflow.end_run()`` does besides its request, which may fail or be sent later.

    A run that stays active would be FINISHED when the process ends.
    """
    active = fluent._active_run_stack.get()
    if run_id in [run.info.run_id for run in active]:
        active[:] = [run for run in active if run.info.run_id != run_id]
        fluent._last_active_run_id.set(run_id)
        if (monitor := fluent.run_id_to_system_metrics_monitor.pop(run_id, None)) is not None:
            with suppress(Exception):  # it logs, too
                monitor.finish()


def _unusable(folder: Path, error: OSError) -> LRRTError:
    return LRRTError(
        f"work in progress cannot be kept in {folder} ({first_line(error)}): name a folder with "
        f"work_dir or {WORK_DIR}"
    )


def refused(kind: str, error: Exception) -> LRRTError:
    """Return the error for a request that the store did not take before any work."""
    if isinstance(error, LRRTError):
        return error
    return LRRTError(
        f"tracking store {mlflow.get_tracking_uri()} did not take a {kind} ({reason_of(error)}): "
        "check the rights of the login, and whether the folders or the server behind it can store "
        "runs and files"
    )


def use_outage_options(options: OutageOptions) -> None:
    """Use these options for the stages of this process."""
    if options.work_dir is not None:
        os.environ[WORK_DIR] = options.work_dir
    PATIENCE.seconds = options.max_wait
    begin_anew()


def begin_anew() -> None:
    """Forget the runs that have ended, and wait for the store as long as ever."""
    _records.all[:] = _records.open
    PATIENCE.begin()


def active_record() -> RunRecord:
    """Return the record of the innermost run of a stage."""
    return _records.open[-1]


def enclosing_record() -> RunRecord | None:
    """Return the record of the innermost run of a stage, if there is one."""
    return _records.open[-1] if _records.open else None


def known_record(run_id: str) -> RunRecord | None:
    """Return the record of a run that this thread has opened."""
    known = (each for each in _records.all if run_id in (each.run_id, each.run.info.run_id))
    return next(known, None)


def get_run(run_id: str) -> Run:
    """Return a run; raise LRRTError if the store has none of this id, or it was deleted.

    Of a run of this process that is not sent completely, it is what this process knows.
    """
    require(
        isinstance(run_id, str) and run_id != "",
        f"{run_id!r} is no id of a run: give the id, as the MLflow UI shows it",
    )
    record = known_record(run_id)
    if record is not None and (record.outbox.requests or run_id != record.run_id):
        return record.as_run()
    try:
        run = ask(lambda: mlflow.MlflowClient().get_run(run_id))
    except StoreUnavailable:
        if record is None:
            raise
        return record.as_run()
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


def local_file(run_id: str, name: str) -> Path | None:
    """Return a file of a run that this process has opened and whose folder is still there."""
    record = known_record(run_id)
    path = None if record is None else record.files / name
    return path if path is not None and path.is_file() else None


def unsent_records() -> list[RunRecord]:
    """Return the records of this thread whose runs have ended, and are not sent completely."""
    ended = (each for each in _records.all if each not in _records.open)
    return [each for each in ended if each.outbox.requests]


def hold(folder: Path) -> FileLock:
    """Return the lock of a run's folder, held; raise InUse if another process has it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUse(
            f"run {folder.name} is in use by another process: wait until that has ended"
        ) from None
    return lock


def work_folder() -> Path:
    """Return the folder for work in progress: ``.lrrt`` here, unless a different one is named.

    Where nothing can be written here, it is in the cache folder.
    """
    if named := os.environ.get(WORK_DIR):
        return expanded(named).absolute()
    here = Path.cwd()
    if (here / NAME).is_dir() or os.access(here, os.W_OK):
        return here / NAME
    return expanded(CACHE) / "runs"


def _make_work_folder(folder: Path) -> None:
    """Make the work folder, which no version control looks into; a person's own stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / IGNORE).write_text(IGNORED, encoding="utf-8")


def remove_folder(folder: Path) -> None:
    """Remove a run's folder, and the work folder when it was the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    ignore = folder.parent / IGNORE
    with suppress(OSError):  # another process is about to use it, or has removed it
        if [*folder.parent.iterdir()] == [ignore] and ignore.read_text("utf-8") == IGNORED:
            ignore.unlink()
            folder.parent.rmdir()
