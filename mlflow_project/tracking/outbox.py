"""The requests of a run to the tracking store, kept on disk until the store has taken them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from mlflow import MlflowClient
from mlflow.entities import (
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunTag,
)
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from lrrt_stage.files import PART, write_text
from lrrt_stage.settings import require
from mlflow_project.tracking import tags
from mlflow_project.tracking.senders import FILES, SENDERS
from mlflow_project.tracking.store import PATIENCE, is_bad_request, is_temporary, reason_of

__all__ = [
    "STATE",
    "UNSENT",
    "Outbox",
    "Request",
    "RunState",
    "run_of_uuid",
    "sha256",
]

STATE, OUTBOX = "run.json", "outbox"
FIRST_FILES = (".safetensors", ".json", ".csv")
"""Kinds of files that are sent before others, which are pictures and reports."""
FIRST_TAGS = re.compile(rf"{re.escape(tags.UUID)}|mlflow\.(?!note)")
"""Tags that a run has from its creation; the others are requests of their own."""
UNSENT = "unsent-"
UNSENT_ID = re.compile(f"{UNSENT}([0-9a-f]{{32}})")
"""Id of a run that was opened while the store was away: its UUID, until it gets a real one."""


@dataclass
class RunState:
    """What a process leaves on disk about a run, whichever way it ends."""

    run_id: str
    experiment_id: str
    run_name: str
    start_time: int
    tracking_uri: str
    """As of :func:`store_uri`."""
    status: str = "RUNNING"
    is_told: bool = False
    """Whether the store knows that the run has ended."""
    tags: dict[str, str] = field(default_factory=dict)

    def as_run(
        self, metrics: Sequence[Metric] = (), params: Mapping[str, str] | None = None, **more: Any
    ) -> Run:
        """Return the run as MLflow has it; ``more`` are further fields of its info."""
        info = {"user_id": "", "end_time": None} | more
        return Run(
            RunInfo(
                run_id=self.run_id,
                experiment_id=self.experiment_id,
                status=self.status,
                start_time=self.start_time,
                lifecycle_stage=LifecycleStage.ACTIVE,
                run_name=self.tags.get(MLFLOW_RUN_NAME, self.run_name),
                **info,
            ),
            RunData(
                [*metrics],
                [Param(*each) for each in (params or {}).items()],
                [RunTag(*each) for each in self.tags.items()],
            ),
        )


@dataclass
class Request:
    """A request to the store."""

    kind: str
    content: dict[str, Any]
    path: Path
    """The file that holds it."""
    error: str = ""
    """Why the store has not taken it; empty before the first attempt."""
    is_refused: bool = False
    """Whether the same request would fail again: it waits for a person to change something."""
    is_written: bool = False
    """Whether its file holds it as it is here."""


class NotYet(Exception):
    """A request names a run that the store has no id for yet."""


_sent: dict[str, str] = {}
"""UUID of a run -> the id that the store gave it."""


class Outbox:
    """What the store has not taken of a run, in order, in the run's ``folder``."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder, self.state = folder, state
        self.requests: list[Request] = []
        self.logged: set[str] = set()
        """Names of the files that were sent, or are kept to be sent."""
        self.artifact_uri = ""
        """The run's folder in the artifact store, where that is known without a request."""
        self.client, self._number = MlflowClient(), 0

    @classmethod
    def load(cls, folder: Path) -> Outbox:
        """Return what the process of a run has left.

        Raises
        ------
        OSError, ValueError, TypeError, KeyError
            If the folder holds no run.
        """
        state = RunState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        for name, kind in get_type_hints(RunState).items():
            kind = get_origin(kind) or kind
            require(isinstance(getattr(state, name), kind), f"{name} is no {kind.__name__}")
        require(all(isinstance(each, str) for each in state.tags.values()), "a tag is no text")
        for place, folders, files in os.walk(folder):
            for name in (*folders, *files):
                # What it leads to may be anything on this machine.
                require(not Path(place, name).is_symlink(), f"{name} is a link: remove it")
        outbox = cls(folder, state)
        for path in sorted((folder / OUTBOX).glob("[0-9]*.json")):  # those that are complete
            request = Request(**json.loads(path.read_text("utf-8")), path=path, is_written=True)
            is_known = request.kind in SENDERS and isinstance(request.content, dict)
            require(is_known, f"{path.name} is no request")
            outbox.requests.append(request)
            outbox._number = int(path.stem.partition("-")[0])
        return outbox

    @property
    def reason(self) -> str:
        """Why the store has not taken all that is kept."""
        return next(filter(None, (each.error for each in self.requests)), "no answer")

    def write_state(self) -> None:
        """Write the state of the run; raise OSError if that is not possible."""
        self.folder.joinpath(OUTBOX).mkdir(parents=True, exist_ok=True)
        write_text(self.folder / STATE, json.dumps(vars(self.state)))

    def write_all(self) -> None:
        """Write each request that is not on disk, and the state; raise OSError if it cannot."""
        for request in self.unwritten():
            self._write(request)
        self.write_state()

    def unwritten(self) -> list[Request]:
        """Return the requests that are in memory alone."""
        return [request for request in self.requests if not request.is_written]

    def save(self) -> None:
        """Write the state of the run, unless the disk is full, which must not end a training."""
        with suppress(OSError):
            self.write_state()

    def request(self, kind: str, **content: Any) -> None:
        """Send a request to the store, whatever is kept."""
        SENDERS[kind](self, content)

    def keep_files(self) -> None:
        """Keep a request for every file of the run that was not sent yet, weights first."""
        paths = [path for path in (self.folder / FILES).rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: (path.suffix not in FIRST_FILES, str(path))):
            name = path.relative_to(self.folder / FILES).as_posix()
            is_whole = not path.name.startswith(PART)
            if is_whole and name not in self.logged and not path.is_symlink():
                self.logged.add(name)
                self.keep("file", name=name)

    def keep(self, kind: str, *, extend: Request | None = None, **content: Any) -> Request:
        """Keep a request, which is sent later, and return it.

        What is to be logged is added to the request ``extend``, if that is the last and was not
        sent.
        """
        last = self.requests[-1] if self.requests else None
        if last is not None and last is extend and last.kind == kind == "log" and not last.error:
            last.content = joined(last.content, content)
        else:
            self._number += 1
            path = self.folder / OUTBOX / f"{self._number:06}.json"
            last = Request(kind, content, path)
            self.requests.append(last)
        # A full disk does not end a training: what is in memory is sent all the same.
        with suppress(OSError):
            self._write(last)
        return last

    def _write(self, request: Request) -> None:
        request.is_written = False
        names = ("kind", "content", "error", "is_refused")
        write_text(request.path, json.dumps({name: getattr(request, name) for name in names}))
        request.is_written = True

    def send_first(self) -> None:
        """Send what was logged before the work, or raise what the store answers."""
        for request in [*self.requests]:
            self._send(request)
            self._forget(request)

    def drop_refused(self) -> None:
        """Forget what the store has refused."""
        for request in [request for request in self.requests if request.is_refused]:
            self._forget(request)

    def send(self, *, refused: bool = False) -> set[str]:
        """Send what is kept, in order; return the kinds of requests that may succeed later.

        A kind of requests that fails does not hold up the others, but for the end of the run.
        ``refused`` requests are sent only if asked.
        """
        failed: set[str] = set()
        waiting = deque(self.requests)
        while waiting:
            request = waiting.popleft()
            is_early = request.kind == "end" and len(self.requests) > 1
            if request.kind in failed or is_early or (request.is_refused and not refused):
                continue
            if not refused:
                self._keep_refused_apart(request)
            kind = "create"
            try:
                self.open_run()
                kind = request.kind
                PATIENCE.attempt(partial(self._send, request), kind)
            except Exception as error:
                request.error = reason_of(error)
                may_have_parts = isinstance(error, NotYet) or is_bad_request(error)
                if kind == "log" and may_have_parts and (parts := self._split(request)):
                    waiting.extendleft(reversed(parts))
                    continue
                if isinstance(error, NotYet):
                    continue
                request.is_refused = not is_temporary(error)
                with suppress(OSError):
                    self._write(request)
                if is_temporary(error):
                    failed.add(kind)
                if kind == "create":
                    break
            else:
                self._forget(request)
        return failed

    def _forget(self, request: Request) -> None:
        self.requests.remove(request)
        # A disk that went away does not end a training; the store takes a request twice.
        with suppress(OSError):
            request.path.unlink(missing_ok=True)

    def _keep_refused_apart(self, request: Request) -> None:
        """Add what the store has refused under the same name to that; leave the rest.

        So a metric that is refused in every epoch, beside others, is not sent again before the end.
        """
        if request.kind != "log":
            return
        refused = {
            _name(part): each
            for each in self.requests
            if each.is_refused and each.kind == "log"
            for part in split(each.content)
        }
        parts = split(request.content) if refused else []
        taken = [part for part in parts if _name(part) not in refused]
        if not taken or len(taken) == len(parts):
            return
        for part in parts:
            if (other := refused.get(_name(part))) is not None:
                other.content = joined(other.content, part)
                with suppress(OSError):
                    self._write(other)
        request.content = reduce(joined, taken)
        with suppress(OSError):
            self._write(request)

    def _split(self, request: Request) -> list[Request]:
        """Keep the parts of a request in its place, and return them, if there are several.

        The store may have taken some already, so they have the error of the whole.
        """
        parts = split(request.content)
        if len(parts) < 2:
            return []
        # A later process sends them in the order of these names: where the whole request was.
        paths = [request.path.with_stem(f"{request.path.stem}-{n:04}") for n in range(len(parts))]
        requests = [Request("log", *each, request.error) for each in zip(parts, paths, strict=True)]
        place = self.requests.index(request)
        self.requests[place : place + 1] = requests
        with suppress(OSError):
            for each in requests:
                self._write(each)
            request.path.unlink(missing_ok=True)
        return requests

    def _send(self, request: Request) -> None:
        content = request.content = self.with_ids(request.content)
        if request.kind == "log":
            # A tag that was refused comes after newer ones.
            given = content.get("tags", {})
            now = self.with_ids({k: self.state.tags[k] for k in given if k in self.state.tags})
            newest = {k: v for k, v in given.items() if now.get(k, v) == v}
            points = content.get("metrics", [])
            if request.error and points:
                # The store may have taken them without an answer. Databases find that out
                # themselves.
                names = {point[0] for point in points}
                history = partial(self.client.get_metric_history, self.state.run_id)
                logged = {(m.key, m.timestamp, m.step) for name in names for m in history(name)}
                points = [(n, v, t, s) for n, v, t, s in points if (n, t, s) not in logged]
            content = content | {"tags": newest, "metrics": points}
        SENDERS[request.kind](self, content)

    def settle(self) -> None:
        """Send what is kept, again and again while it may succeed and there is time to wait."""
        while (failed := self.send(refused=True)) and PATIENCE.wait(failed):
            pass

    def open_run(self) -> None:
        """Open the run in the store, if it was opened here while the store was away."""
        if self.state.run_id.startswith(UNSENT):
            PATIENCE.attempt(self._create, "create")

    def adopt(self) -> None:
        """Take the run that an earlier request has made, if its answer was lost or not awaited."""
        state = self.state
        if state.run_id.startswith(UNSENT):
            uuid = state.run_id.removeprefix(UNSENT)
            if (run := run_of_uuid(uuid, state.experiment_id)) is not None:
                self._use(run)

    def _create(self) -> None:
        self.adopt()
        state = self.state
        if state.run_id.startswith(UNSENT):
            own = {name: value for name, value in state.tags.items() if FIRST_TAGS.match(name)}
            self._use(
                self.client.create_run(state.experiment_id, state.start_time, self.with_ids(own))
            )

    def _use(self, run: Run) -> None:
        uuid = self.state.run_id.removeprefix(UNSENT)
        self.state.run_id = _sent[uuid] = run.info.run_id
        self.artifact_uri = run.info.artifact_uri or ""
        self.save()

    def with_ids(self, content: Any) -> Any:
        """Return a request with the store's ids in place of those that runs had before.

        Raises
        ------
        NotYet
            If the store has no id yet for a run that is kept.
        """

        def id_of(match: re.Match[str]) -> str:
            uuid = match[1]
            if uuid not in _sent:
                run = run_of_uuid(uuid, self.state.experiment_id)
                if run is None and (self.folder.parent / match[0]).is_dir():
                    raise NotYet(f"run {match[0]} is not sent yet")
                if run is None:  # a run that was given up, or a text like an id
                    return match[0]
                _sent[uuid] = run.info.run_id
            return _sent[uuid]

        return json.loads(UNSENT_ID.sub(id_of, json.dumps(content)))

    def tell(self, status: str, time: int | None = None) -> None:
        """Tell the store that the run has ended."""
        self.client.set_terminated(self.state.run_id, status, time)
        self.state.is_told = True
        self.save()

    def tell_unsent(self) -> None:
        """Have the run FAILED in the store until everything is sent."""
        if self.state.run_id.startswith(UNSENT):
            return
        text = f"not all that it logged is sent ({self.reason}): see lrrt-stage sync"
        # The tag last: it is removed from a run of which it is known that the status was taken.
        with suppress(Exception):
            PATIENCE.attempt(partial(self.tell, "FAILED"), "end")
            PATIENCE.attempt(partial(self.request, "log", tags={tags.ERROR: text}), "end")


def joined(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Return tags, parameters and metrics that are logged one after the other, as one request."""
    return {
        "tags": first.get("tags", {}) | then.get("tags", {}),
        "params": first.get("params", {}) | then.get("params", {}),
        "metrics": [*first.get("metrics", []), *then.get("metrics", [])],
    }


def split(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of such a request: one for each tag, parameter, and metric."""
    parts = [
        {kind: {name: value}}
        for kind in ("tags", "params")
        for name, value in content.get(kind, {}).items()
    ]
    points = defaultdict[str, list[Any]](list)
    for point in content.get("metrics", []):
        points[point[0]].append(point)
    return [*parts, *({"metrics": each} for each in points.values())]


def _name(part: Mapping[str, Any]) -> tuple[str, str]:
    """Return of which kind a part is, and the name of its tag, parameter or metric."""
    ((kind, values),) = part.items()
    return kind, values[0][0] if kind == "metrics" else next(iter(values))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_of_uuid(uuid: str, experiment_id: str) -> Run | None:
    """Return the run of the store that this project opened with a UUID, if there is one."""
    found = MlflowClient().search_runs([experiment_id], f"tags.`{tags.UUID}` = '{uuid}'")
    return found[0] if found else None
