"""The Optuna study of a search, which any number of workers share."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from itertools import count
from typing import Any, NamedTuple, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, table
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords
from pipeline.task.setup import Direction

__all__ = ["PLACE", "TRIES", "Places", "Search", "open_search"]

T = TypeVar("T")

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 120
"""A running trial says this often that it is alive, and fails after so long without a sign."""
CONNECT_SECONDS, LOCK_SECONDS = 5, 30
"""How long a server is waited for, and a SQLite file that another worker is writing to."""
OPENINGS, PAUSE_SECONDS = 10, 0.3
"""Attempts to open a storage in which other workers create the tables at the same time."""
PATIENCE_SECONDS, AGAIN_SECONDS = 60, 1
"""How long a storage is waited for that has answered before, and between two attempts. It is less
than the grace by more than two signs of life: a server that starts again finds no trial lost."""
LOST_SECONDS = 1
"""How often a worker looks for trials that are lost, at most."""
TRIES = 3
"""How often a trial is begun whose worker is ended from outside, perhaps by the trial itself."""
PLACE = "lrrt.place"
"""User attribute of a trial: which one of the search it is, however often it was begun. The Optuna
study has one for each place, with its number behind a dot: the number of the trial that took it."""
LOST = "lrrt.lost"
"""User attribute of a trial that failed since its worker gave no sign of life."""
ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's table, in which a study has a key once. Optuna's own functions replace a value."""
DRIVERS = {"psycopg": "'lrrt-stage[postgresql]'", "psycopg2": "psycopg2-binary"}
"""Module -> what pip installs it by, where that has a different name."""


class _PatientStorage(RDBStorage):
    """Optuna's storage, of which every request waits a while for a database that is away.

    The answer to a request may be lost that was carried out. It has the same effect twice as once,
    but for a trial that was made: nobody runs the first one, and it never takes a place.
    """

    def __init__(self, url: str, on_note: Callable[[str], None] | None, **options: Any) -> None:
        self.shown, self.on_note = hide_passwords(url), on_note
        self._seconds: float = PATIENCE_SECONDS
        self._away_since: float | None = None
        super().__init__(url, **options)

    def hurry(self) -> None:
        """Wait for nothing any more: the work ends."""
        self._seconds = 0

    def patiently(self, request: Callable[[], T]) -> T:
        """Return what a request gives, which is repeated while the database does not answer.

        Raises
        ------
        LRRTError
            If the database has not answered for too long, or refuses the request.
        """
        while True:
            try:
                answer = request()
            except Exception as error:
                found = error if isinstance(error, DBAPIError) else error.__cause__
                if not isinstance(found, DBAPIError):
                    raise
                self._wait(found, error)
            else:
                self._away_since = None
                return answer

    def beat(self, trial_id: int) -> None:
        """Say that a trial is alive, if the database takes it now: the next sign follows soon."""
        with suppress(Exception):
            super().record_heartbeat(trial_id)

    def _wait(self, found: DBAPIError, error: Exception) -> None:
        reason, now = first_line(found.orig or found), time.monotonic()
        is_temporary = isinstance(found, (OperationalError, InterfaceError))
        since = now if self._away_since is None else self._away_since
        if not is_temporary or now - since >= self._seconds:
            raise LRRTError(
                f"storage {self.shown!r} no longer answers ({reason}): see that its server "
                "runs, or that its file can be written, and give the same command again"
            ) from error
        if self._away_since is None and self.on_note is not None:
            self.on_note(
                hide_passwords(
                    f"storage {self.shown} does not answer ({reason}): it is waited for, up to "
                    f"{self._seconds:g} s"
                )
            )
        self._away_since = since
        time.sleep(AGAIN_SECONDS)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def request(self: _PatientStorage, *args: Any, **more: Any) -> Any:
        return self.patiently(lambda: method(self, *args, **more))

    return request


for name in (
    *BaseStorage.__abstractmethods__,
    *("record_heartbeat", "_get_stale_trial_ids"),
    # What Optuna's cache asks for in place of the public ones; 4.5 does not have all of them.
    *("_create_new_trial", "_get_trials", "_set_trial_param"),
):
    if hasattr(RDBStorage, name):
        setattr(_PatientStorage, name, _patient(getattr(RDBStorage, name)))


class Places(NamedTuple):
    """How far the first places of a search are."""

    finished: int
    """Trials that have ended, and those that nobody begins again."""
    running: int
    free: int


@dataclass
class Search:
    """The Optuna study of a search, and the storage that holds it.

    A search has as many places as trials. A trial takes one when it begins, and no other trial has
    the same unless it has failed: so none is run twice, and there are exactly as many as are asked
    for. The place of a trial that ended its worker each time stays with the last one that failed.
    """

    optuna_study: optuna.Study
    storage: _PatientStorage
    is_new: bool
    """Whether this worker has made the study."""
    _next_look: float = 0.0
    """When this worker looks again for trials that are lost."""

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, which are not to be changed."""
        return self.optuna_study.get_trials(deepcopy=False)

    def claim(self, key: str, value: Any, *, instead_of: Any = None) -> Any:
        """Set a user attribute of the study unless it is there, and return the one that counts.

        It replaces ``instead_of``, and nothing else. Of several workers, one succeeds.
        """
        study_id = self.optuna_study._study_id
        text, columns = json.dumps(value), ATTRIBUTES.c
        change: Any
        if instead_of is None:
            row = {"study_id": study_id, "key": key, "value_json": text}
            change = ATTRIBUTES.insert().values(row)
        else:
            change = (
                ATTRIBUTES.update()
                .where(columns.study_id == study_id, columns.key == key)
                .where(columns.value_json == json.dumps(instead_of))
                .values(value_json=text)
            )

        def request() -> None:
            with suppress(IntegrityError), self.storage.engine.begin() as connection:
                connection.execute(change)

        if instead_of is not None or key not in self.optuna_study.user_attrs:
            self.storage.patiently(request)
        return self.optuna_study.user_attrs[key]

    def places(self, number: int) -> Places:
        """Return how many of so many places have ended, are being run, or can be taken."""
        held = self._taken(self._claims())
        states = [trial.state for place, trial in held.items() if place < number]
        finished = sum(state.is_finished() for state in states)
        return Places(finished, len(states) - finished, number - len(states))

    def given_up(self) -> list[int]:
        """Return the places of trials that were lost so often that nobody repeats them."""
        return sorted(_given_up(self.trials))

    def take_place(self, trial: optuna.Trial, places: int) -> int | None:
        """Take a place for a trial that has just begun; return None if there is none for it."""
        # Before all else: only from then on is it known when the worker is gone.
        self.storage.record_heartbeat(trial._trial_id)
        claims = self._claims()
        held = self._taken(claims)
        for place in range(places):
            if place in held:
                continue
            key, before = f"{PLACE}.{place}", claims.get(place)
            if self.claim(key, trial.number, instead_of=before) == trial.number:
                trial.set_user_attr(PLACE, place)
                return place
        return None

    @contextmanager
    def alive(self, trial: optuna.Trial) -> Iterator[None]:
        """Say again and again during a block that a trial is alive."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                self.storage.beat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def end(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> None:
        """End a trial, unless another worker has taken it for lost."""
        with suppress(UpdateFinishedTrialError):
            self.optuna_study.tell(trial, value, state=state, skip_if_finished=True)

    def fail_lost(self) -> None:
        """Fail the trials of a place whose workers are gone; their places are then free.

        Without a place are those of other programs, which may give no sign of life, and what is
        left of a worker that was killed before it took one: both hold nobody up.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOST_SECONDS
        silent = self.storage._get_stale_trial_ids(self.optuna_study._study_id)
        taken = self._taken(self._claims()).values() if silent else ()
        for trial in taken:
            if trial._trial_id in silent:
                # Another worker may have done so, or that of the trial has come back and ended it.
                with suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_user_attr(trial._trial_id, LOST, True)
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _claims(self) -> dict[int, int]:
        """Return the number of the last trial that took each place."""
        attributes, start = self.optuna_study.user_attrs, f"{PLACE}."
        keys = [key for key in attributes if key.startswith(start)]
        return {int(key.removeprefix(start)): attributes[key] for key in keys}

    def _taken(self, claims: dict[int, int]) -> dict[int, FrozenTrial]:
        """Return the trial at each place that is taken.

        The ``claims`` are read before the trials, which then are no older.
        """
        trials = self.trials
        running = {each.number: each for each in trials if each.state == TrialState.RUNNING}
        claimed = {place: running[each] for place, each in claims.items() if each in running}
        ended = [each for each in trials if each.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        own = [each for each in (*running.values(), *ended) if PLACE in each.user_attrs]
        held = _given_up(trials) | claimed | {each.user_attrs[PLACE]: each for each in own}
        for trial in ended:
            if PLACE not in trial.user_attrs:  # by a program of somebody else
                held[_first_free(held)] = trial
        return held


def _given_up(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the last trial at each place where too many were lost."""
    lost = [each for each in trials if each.state == TrialState.FAIL and LOST in each.user_attrs]
    placed = [each for each in lost if PLACE in each.user_attrs]
    tries = Counter(each.user_attrs[PLACE] for each in placed)
    return {
        each.user_attrs[PLACE]: each for each in placed if tries[each.user_attrs[PLACE]] >= TRIES
    }


def _first_free(held: dict[int, FrozenTrial]) -> int:
    return next(place for place in count() if place not in held)


def open_search(
    study_name: str,
    storage: str,
    direction: Direction,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
    on_note: Callable[[str], None] | None = None,
) -> Search:
    """Open the Optuna study of a search, or make it.

    ``on_note`` is called with a line for a person when the storage is away later on.

    Raises
    ------
    LRRTError
        If the storage cannot be used.
    """
    parts = {"sampler": sampler, "pruner": pruner}
    try:
        database = _open_storage(storage, on_note)
        try:
            made = optuna.create_study(
                study_name=study_name, storage=database, direction=f"{direction}imize", **parts
            )
            return Search(made, database, is_new=True)
        except DuplicatedStudyError:
            found = optuna.load_study(study_name=study_name, storage=database, **parts)
            return Search(found, database, is_new=False)
    except LRRTError:
        raise
    except Exception as error:  # SQLAlchemy's, a driver's, Optuna's
        missing = error.__cause__ or error
        if isinstance(missing, ModuleNotFoundError) and missing.name:
            driver = missing.name.partition(".")[0]
            raise LRRTError(
                f"storage {hide_passwords(storage)!r} needs the driver {driver}, which is not "
                f"installed: pip install {DRIVERS.get(driver, driver)}"
            ) from error
        raise LRRTError(
            hide_passwords(
                f"storage {storage!r} cannot be used ({first_line(error)}): start its server, or "
                "give an Optuna storage URL such as sqlite:///optuna.db"
            )
        ) from error


def _open_storage(storage: str, on_note: Callable[[str], None] | None) -> _PatientStorage:
    options: dict[str, Any] = {}
    if storage.startswith("postgresql://") and find_spec("psycopg") is not None:
        # SQLAlchemy before 2.1 would take psycopg2.
        storage = storage.replace("postgresql", "postgresql+psycopg", 1)
    if storage.startswith("sqlite") and "timeout=" not in storage:
        options = {"connect_args": {"timeout": LOCK_SECONDS}}
    elif storage.startswith(("postgresql", "mysql")):
        options = {"pool_pre_ping": True}  # a server may have closed a connection meanwhile
        if "connect_timeout=" not in storage:
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    for attempt in count(1):
        try:
            return _PatientStorage(
                storage,
                on_note,
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
        except Exception as error:
            # Workers that begin at the same time make the same tables.
            text = str(error)
            is_race = any(words in text for words in ("already exists", "duplicate key", "UNIQUE"))
            if attempt == OPENINGS or not is_race:
                raise
        time.sleep(PAUSE_SECONDS)
    raise AssertionError
