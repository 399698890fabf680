"""The Optuna study of a search, which any number of workers share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, table
from sqlalchemy.exc import IntegrityError

from lrrt_stage import LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import hide_passwords
from pipeline.task.setup import Direction

__all__ = ["PLACE", "Search", "open_search"]

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 120
"""A running trial says this often that it is alive, and fails after so long without a sign."""
CONNECT_SECONDS, LOCK_SECONDS = 5, 30
"""How long a server is waited for, and a SQLite file that another worker is writing to."""
OPENINGS, PAUSE_SECONDS = 10, 0.3
"""Attempts to open a storage in which other workers create the tables at the same time."""
DECIDING_SECONDS = 0.05
PLACE = "lrrt.place"
"""User attribute of a trial: which one of the search it is, however often it was begun."""
ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's table, in which a study has a key once. Optuna's own functions replace a value."""
DRIVERS = {"psycopg": "'lrrt-stage[postgresql]'", "psycopg2": "psycopg2-binary"}
"""Module -> what pip installs it by, where that has a different name."""


@dataclass
class Search:
    """The Optuna study of a search, and the storage that holds it.

    A search has as many places as trials. A trial takes one when it begins, and no other trial has
    the same unless it has failed: so none is run twice, and there are exactly as many as are asked
    for.
    """

    optuna_study: optuna.Study
    storage: RDBStorage
    is_new: bool
    """Whether this worker has made the study."""
    _undecided: int | None = None
    """Number of the first running trial without a place."""
    _since: float = 0.0
    """When this worker first saw that."""

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, which are not to be changed."""
        return self.optuna_study.get_trials(deepcopy=False)

    def claim(self, key: str, value: Any, *, instead_of: Any = None) -> Any:
        """Set a user attribute of the study unless it is there, and return the one that counts.

        It replaces ``instead_of``, and nothing else. Of several workers, one succeeds.
        """
        study_id = self.storage.get_study_id_from_name(self.optuna_study.study_name)
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
        if instead_of is not None or key not in self.optuna_study.user_attrs:
            with suppress(IntegrityError), self.storage.engine.begin() as connection:
                connection.execute(change)
        return self.optuna_study.user_attrs[key]

    def finished(self, below: int | None = None) -> int:
        """Return how many trials have ended well, of all or of those at the first places."""
        held = _held(self.trials)
        return sum(
            trial.state.is_finished() for place, trial in held.items() if _is_below(place, below)
        )

    def running(self) -> int:
        """Return how many trials are being run."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    def free(self, places: int) -> int:
        """Return how many of the first places nobody has taken, or is about to take."""
        trials = self.trials
        taken = [place for place in _held(trials) if place < places]
        return places - len(taken) - len(_undecided(trials))

    def take_place(self, trial: optuna.Trial, places: int) -> int | None:
        """Take a place for a trial that has just begun; return None if there is none for it."""
        # Optuna's thread does the same. Only from then on is it known when the worker is gone.
        self.storage.record_heartbeat(trial._trial_id)
        while True:
            others = [each for each in self.trials if each.number != trial.number]
            earlier = [each for each in others if each.number < trial.number]
            if any(each.state == TrialState.WAITING for each in earlier):
                return None  # a trial that somebody has put into the queue comes first
            if not _undecided(earlier):
                break
            self.fail_lost()
            time.sleep(DECIDING_SECONDS)
        place = _first_free(_held(others))
        if place >= places:
            return None
        trial.set_user_attr(PLACE, place)
        return place

    def fail_lost(self) -> None:
        """Fail the trials whose workers are gone; their places are then free.

        Optuna does not do so with a trial whose worker was killed before its first sign of life.
        """
        optuna.storages.fail_stale_trials(self.optuna_study)
        # The first one decides at once; the others may have waited for it.
        first = min((each.number for each in _undecided(self.trials)), default=None)
        if first is None or first != self._undecided:
            self._undecided, self._since = first, time.monotonic()
        elif time.monotonic() - self._since > GRACE_SECONDS:
            # Another worker may have done so.
            with suppress(ValueError, UpdateFinishedTrialError):
                self.optuna_study.tell(first, state=TrialState.FAIL)

    def has_failed(self, number: int) -> bool:
        """Return whether a trial has failed, perhaps since another worker took it for lost."""
        return any(each.state == TrialState.FAIL for each in self.trials if each.number == number)


def _held(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trial at each place that is taken."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = [each for each in trials if each.state in (*ended, TrialState.RUNNING)]
    held = {each.user_attrs[PLACE]: each for each in trials if PLACE in each.user_attrs}
    for trial in trials:
        if trial.state in ended and PLACE not in trial.user_attrs:  # by a program of somebody else
            held[_first_free(held)] = trial
    return held


def _undecided(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the running trials that have not taken a place yet."""
    running = (each for each in trials if each.state == TrialState.RUNNING)
    return [each for each in running if PLACE not in each.user_attrs]


def _first_free(held: dict[int, FrozenTrial]) -> int:
    return next(place for place in count() if place not in held)


def _is_below(place: int, end: int | None) -> bool:
    return end is None or place < end


def open_search(
    study_name: str,
    storage: str,
    direction: Direction,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> Search:
    """Open the Optuna study of a search, or make it.

    Raises
    ------
    LRRTError
        If the storage cannot be used.
    """
    parts = {"sampler": sampler, "pruner": pruner}
    try:
        database = _open_storage(storage)
        try:
            made = optuna.create_study(
                study_name=study_name, storage=database, direction=f"{direction}imize", **parts
            )
            return Search(made, database, is_new=True)
        except DuplicatedStudyError:
            found = optuna.load_study(study_name=study_name, storage=database, **parts)
            return Search(found, database, is_new=False)
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


def _open_storage(storage: str) -> RDBStorage:
    options: dict[str, Any] = {}
    if storage.startswith("sqlite") and "timeout=" not in storage:
        options = {"connect_args": {"timeout": LOCK_SECONDS}}
    elif storage.startswith(("postgresql", "mysql")):
        options = {"pool_pre_ping": True}  # a server may have closed a connection meanwhile
        if "connect_timeout=" not in storage:
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    for attempt in count(1):
        try:
            return RDBStorage(
                storage,
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
