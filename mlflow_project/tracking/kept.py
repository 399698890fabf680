"""Runs that are kept on disk after their process has ended: found, marked, resumed, and sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow.utils.time import get_current_time_millis

from lrrt_stage import LRRTError
from lrrt_stage.errors import excerpt, first_line
from lrrt_stage.settings import require
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.connection import store_uri
from mlflow_project.tracking.outbox import STATE, UNSENT, Outbox, RunState, sha256
from mlflow_project.tracking.record import InUse, hold, remove_folder, work_folder
from mlflow_project.tracking.senders import FILES
from mlflow_project.tracking.store import PATIENCE, reason_of

__all__ = ["forget", "held", "kept_run", "mark_ended", "sync"]

UNSENT_REASON = "not all that it logged is sent: see lrrt-stage sync"
KILLED = "its process ended without a word: it was killed, or the machine was"


def kept_run(name: str) -> Path | None:
    """Return the folder of a run that is kept here, by its id or its folder; None if none is.

    Raises
    ------
    LRRTError
        If ``name`` is a folder that holds no run.
    """
    here = work_folder() / name
    if os.sep not in name and (here / STATE).is_file():
        return here
    if os.sep not in name and not Path(name).is_dir():
        # The folder of a run that got its id late has a different name.
        states = ((folder, _state(folder)) for folder in _folders(work_folder()))
        return next((folder for folder, state in states if state and state.run_id == name), None)
    _load(Path(name))
    return Path(name)


@contextmanager
def held(folder: Path) -> Iterator[Outbox]:
    """Hold the folder of a run, and return what its process has left.

    Raises
    ------
    InUse
        If the process is still there, or a different one has sent the run meanwhile.
    LRRTError
        If the folder holds no run.
    """
    _require_kept(folder)  # before the lock, which would make the folder again
    lock = hold(folder)
    try:
        _require_kept(folder)
        yield _load(folder)
    finally:
        lock.release()


def _require_kept(folder: Path) -> None:
    if not (folder / STATE).is_file():
        raise InUse(f"run {folder.name} is not kept any more: it was sent")


def forget(folder: Path) -> None:
    """Remove the folder of a run that was resumed, if the store has everything of it."""
    with suppress(InUse), held(folder) as kept:
        if kept.state.is_told and not kept.requests:
            remove_folder(folder)


def mark_ended() -> None:
    """Mark the runs of this store as KILLED whose process is gone without having told their end.

    Nothing else of a folder is used here, which may come from somebody else.
    """
    for folder in _folders(work_folder()):
        state = _state(folder)
        if state is None or state.tracking_uri != store_uri():
            continue
        if state.is_told and state.status == "KILLED":
            continue
        # What a person has asked for does not depend on this.
        with suppress(Exception), held(folder) as kept:
            if not kept.state.is_told:  # it may have ended in between
                _mark(kept)
            elif not kept.requests:  # of a run that reads its files, and was killed
                remove_folder(folder)


def _mark(kept: Outbox) -> None:
    client, state = mlflow.MlflowClient(), kept.state
    was_running = state.status == "RUNNING"
    reason = KILLED if was_running else UNSENT_REASON
    PATIENCE.attempt(kept.adopt)
    if not state.run_id.startswith(UNSENT):
        run = PATIENCE.attempt(lambda: client.get_run(state.run_id))
        # A folder may name any run: only one that it knows, and that nobody has ended, is marked.
        is_own = run.data.tags.get(tags.UUID) == state.tags.get(tags.UUID)
        if is_own and run.info.status == "RUNNING":
            PATIENCE.attempt(lambda: client.set_terminated(state.run_id, "KILLED"))
            PATIENCE.attempt(lambda: client.set_tag(state.run_id, tags.ERROR, reason))
    if was_running:
        state.status = "KILLED"
    else:
        _complete(kept)
    state.is_told = True
    kept.write_all()
    has_files = any(path.is_file() for path in (kept.folder / FILES).rglob("*"))
    if not kept.requests and not has_files:
        remove_folder(kept.folder)
    elif was_running:
        stage = state.tags.get(tags.STAGE, "stage")
        more = "; lrrt-stage sync sends what it had logged" if kept.requests else ""
        more += f"; {stage} --resume {state.run_id} continues" if stage == "train" else ""
        console.note(f"{stage} run {state.run_id} was killed, and has left {kept.folder}{more}")


def _complete(kept: Outbox) -> None:
    """Keep what the process of a run has not kept of the run's end."""
    state = kept.state
    if any(request.kind == "end" for request in kept.requests):
        return
    if state.status == "RUNNING":
        state.status = "KILLED"
    if state.status == "KILLED":  # as if it had been interrupted
        values = {tags.ERROR: state.tags.setdefault(tags.ERROR, KILLED)}
        checkpoint = kept.folder / FILES / tags.CHECKPOINT_FILE
        if checkpoint.is_file():
            values[tags.CHECKPOINT] = sha256(checkpoint)
        kept.keep("log", tags=values)
    kept.keep_files()
    kept.keep("end", status=state.status, time=get_current_time_millis())


def sync(path: str | None, tracking_uri: str | None) -> list[str]:
    """Send what is kept in a run's folder, or in all those of a work folder; return the run ids.

    It goes to the store that is used here, if the runs are of that store, or to ``tracking_uri``.
    What a folder names is not enough: it may come from somebody else, and the login is sent along.

    Raises
    ------
    LRRTError
        If nothing is kept there, or something cannot be sent; the rest is sent.
    """
    folder = work_folder() if path is None else Path(path)
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    is_run = (folder / STATE).is_file()
    found = [folder] if is_run else _folders(folder)
    require(
        path is None or bool(found),
        f"{folder} holds no run: give a folder .lrrt/RUN_ID, or .lrrt for all",
    )
    found.sort(key=_start_time)
    # First all runs are opened, since the requests of one may name another.
    for each in found:
        with suppress(Exception), held(each) as kept:
            _require_store(kept, tracking_uri)
            kept.open_run()
    sent: list[str] = []
    reasons: dict[Path, str] = {}
    used = 0
    for each in found:
        try:
            with held(each) as kept:
                _require_store(kept, tracking_uri)
                _send(kept)
                sent.append(kept.state.run_id)
        except InUse as error:
            used += 1
            if is_run:
                reasons[each] = str(error)
        except Exception as error:
            reasons[each] = reason_of(error)
    if used and not is_run:
        console.note(f"{used} of {len(found)} runs belong to a process that runs: left alone")
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise LRRTError(
            f"{len(reasons)} of {len(found)} runs are not sent ({first}: {reason}): they are kept; "
            "remove the reason, or correct tracking_uri, and send them again"
        )
    return sent


def _send(kept: Outbox) -> None:
    """Send all that is kept of a run, and remove its folder."""
    state = kept.state
    is_whole = state.is_told and state.status != "KILLED" and not kept.requests
    if not is_whole:
        _complete(kept)
    kept.settle()
    if kept.requests:
        raise LRRTError(kept.reason)
    remove_folder(kept.folder)


def _require_store(kept: Outbox, tracking_uri: str | None) -> None:
    own, here = kept.state.tracking_uri, store_uri()
    require(
        tracking_uri is not None or own == here,
        f"it is of the store {excerpt(own)}, and here {here} is used: give its address with "
        "--tracking-uri",
    )
    require("***" not in mlflow.get_tracking_uri(), "give the whole address, with its password")


def _state(folder: Path) -> RunState | None:
    """Return what a folder says of its run; None if it cannot be read."""
    with suppress(LRRTError):
        return _load(folder).state
    return None


def _start_time(folder: Path) -> int:
    state = _state(folder)
    return 0 if state is None else state.start_time


def _load(folder: Path) -> Outbox:
    try:
        return Outbox.load(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LRRTError(
            f"{folder} holds no run ({first_line(error)}): give a folder .lrrt/RUN_ID"
        ) from error


def _folders(work_folder: Path) -> list[Path]:
    """Return the folders of runs in a work folder."""
    return [path.parent for path in sorted(work_folder.glob(f"*/{STATE}"))]
