"""Runs that are kept on disk after their process has ended: found, marked, resumed, and sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow.utils.time import get_current_time_millis

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords, require
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.outbox import FILES, STATE, UNSENT, Outbox, sha256
from mlflow_project.tracking.record import hold, remove_folder, work_folder
from mlflow_project.tracking.store import PATIENCE, reason_of

__all__ = ["kept_run", "mark_ended", "own_process", "sync"]

NAMED_URI = "MLFLOW_TRACKING_URI"
UNSENT_REASON = "not all that it logged is sent: see lrrt-stage sync"
KILLED = "its process ended without a word: it was killed, or the machine was"


def kept_run(name: str) -> Outbox | None:
    """Return what is kept here of a run, by its id or its folder; None if nothing is.

    Raises
    ------
    LRRTError
        If ``name`` is a folder that holds no run.
    """
    here = work_folder() / name
    if os.sep not in name and (here / STATE).is_file():
        return _load(here)
    return _load(Path(name)) if os.sep in name or Path(name).is_dir() else None


@contextmanager
def own_process(kept: Outbox) -> Iterator[None]:
    """Hold a kept run; raise LRRTError if the process that it belongs to is still there."""
    require((kept.folder / STATE).is_file(), f"run {kept.state.run_id} is not kept any more")
    lock = hold(kept.folder)
    try:
        yield
    finally:
        lock.release()


def mark_ended() -> None:
    """Mark the runs of this store as KILLED whose process is gone without having told their end."""
    uri = hide_passwords(mlflow.get_tracking_uri())
    for kept in _kept(work_folder()):
        state = kept.state
        if not state.is_told and state.tracking_uri == uri:
            # What a person has asked for does not depend on this.
            with suppress(Exception), own_process(kept):
                # Read again: the run may have ended in between.
                kept = Outbox.load(kept.folder)
                if not kept.state.is_told:
                    _mark(kept)


def _mark(kept: Outbox) -> None:
    client, state = mlflow.MlflowClient(), kept.state
    reason = KILLED if state.status == "RUNNING" else UNSENT_REASON
    if not state.run_id.startswith(UNSENT):
        PATIENCE.attempt(lambda: client.set_tag(state.run_id, tags.ERROR, reason))
        PATIENCE.attempt(lambda: client.set_terminated(state.run_id, "KILLED"))
    was_running, state.is_told = state.status == "RUNNING", True
    state.status = "KILLED" if was_running else state.status
    kept.save()
    if not was_running:
        return
    stage = state.tags.get(tags.STAGE, "stage")
    resume = f"; {stage} --resume {state.run_id} continues" if stage == "train" else ""
    console.note(f"{stage} run {state.run_id} was killed, and has left {kept.folder}{resume}")


def sync(path: str | None, tracking_uri: str | None) -> list[str]:
    """Send what is kept in a run's folder, or in all those of a work folder; return the run ids.

    Raises
    ------
    LRRTError
        If nothing is kept there, or something cannot be sent; the rest is sent.
    """
    folder = work_folder() if path is None else Path(path)
    kept = [_load(folder)] if (folder / STATE).is_file() else _kept(folder)
    require(
        path is None or bool(kept),
        f"{folder} holds no run: give a folder .lrrt/RUN_ID, or .lrrt for all",
    )
    kept = sorted(kept, key=lambda each: each.state.start_time)
    reasons: dict[Path, str] = {}
    named = os.environ.get(NAMED_URI)
    # First all runs are opened, since the requests of one may name another.
    for step in (Outbox.open_run, _send):
        for each in kept:
            reasons.pop(each.folder, None)
            try:
                with own_process(each):
                    each.use_store(_store_of(each, tracking_uri, named))
                    step(each)
            except Exception as error:
                reasons[each.folder] = f"run {each.state.run_id}: {reason_of(error)}"
    sent = [each for each in kept if each.folder not in reasons]
    for each in sent:
        remove_folder(each.folder)
    require(
        not reasons,
        f"{len(reasons)} of {len(kept)} runs are not sent ({next(iter(reasons.values()), '')}): "
        "they are kept; start the store, or correct tracking_uri, and send them again",
    )
    return [each.state.run_id for each in sent]


def _send(kept: Outbox) -> None:
    state = kept.state
    if state.is_told and state.status != "KILLED" and not kept.requests:
        return  # of a run that reads its files, and was killed
    if not any(request.kind == "end" for request in kept.requests):
        # Of a process that was killed: as if it had been interrupted.
        state.status = "KILLED"
        state.tags.setdefault(tags.ERROR, KILLED)
        values = {tags.ERROR: state.tags[tags.ERROR]}
        checkpoint = kept.folder / FILES / tags.CHECKPOINT_FILE
        if checkpoint.is_file():
            values[tags.CHECKPOINT] = sha256(checkpoint)
        kept.keep("tags", values=values)
        kept.keep_files()
        kept.keep("end", status="KILLED", time=get_current_time_millis())
    kept.settle()
    if kept.requests:
        raise LRRTError(kept.requests[0].error)


def _store_of(kept: Outbox, tracking_uri: str | None, named: str | None) -> str:
    """Return the store that a run goes to: one that is given now, else that of its process.

    The variable of MLflow only adds the password, if it names the same store.
    """
    own = kept.state.tracking_uri
    uri = tracking_uri or (named if named and hide_passwords(named) == own else own)
    require(
        "***" not in uri,
        f"the password of {uri} is not kept: give the whole one by tracking_uri or {NAMED_URI}",
    )
    return uri


def _load(folder: Path) -> Outbox:
    try:
        return Outbox.load(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LRRTError(
            f"{folder} holds no run ({first_line(error)}): give a folder .lrrt/RUN_ID"
        ) from error


def _kept(folder: Path) -> list[Outbox]:
    """Return what is kept of the runs in a work folder, but for folders that cannot be read."""
    found = []
    for path in sorted(folder.glob(f"*/{STATE}")):
        with suppress(LRRTError):  # half written, or being removed by another process
            found.append(_load(path.parent))
    return found
