from __future__ import annotations

import random
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event, text

from pipeline.training import search
from pipeline.training.search import PLACE, Search, open_search
from tests.postgresql import postgresql_address  # noqa: F401
from tests.workers import locked

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore:.*")


def opened(storage: Path | str, name: str = "s", on_note=None) -> Search:
    return open_search(
        name,
        storage if isinstance(storage, str) else f"sqlite:///{storage}/s.db",
        "min",
        optuna.samplers.RandomSampler(),
        optuna.pruners.NopPruner(),
        on_note,
    )


def begin(found: Search, places: int) -> tuple[optuna.Trial, int | None]:
    trial = found.optuna_study.ask()
    return trial, found.take_place(trial, places)


def test_places_are_taken_in_order_and_no_more_than_there_are(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)

    assert (first.is_new, second.is_new) == (True, False)
    assert [begin(each, 3)[1] for each in (first, second, first, second)] == [0, 1, 2, None]


def test_the_place_of_a_trial_that_failed_is_taken_again(tmp_path):
    found = opened(tmp_path)
    trials = [begin(found, 3)[0] for _ in range(3)]
    found.optuna_study.tell(trials[1], state=TrialState.FAIL)

    assert found.places(3).free == 1
    assert begin(found, 3)[1] == 1
    assert found.places(3).free == 0


def test_workers_that_begin_at_once_take_every_place_once(tmp_path):
    take_all_places_at_once(tmp_path, workers=4, places=12)


@pytest.mark.scale
def test_twelve_workers_that_begin_at_once_on_postgresql(postgresql_address):  # noqa: F811
    take_all_places_at_once(postgresql_address, workers=12, places=40)


def take_all_places_at_once(storage: Path | str, workers: int, places: int) -> None:
    """Workers take places and fail now and then; the tables are made by all of them at once."""
    taken: list[int] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            found = opened(storage)
            while found.places(places).finished < places:
                if found.places(places).free <= 0:
                    time.sleep(0.01)
                    continue
                trial, place = begin(found, places)
                if place is None or chance.random() < 0.2:
                    found.optuna_study.tell(trial, state=TrialState.FAIL)
                    continue
                found.optuna_study.tell(trial, float(place))
                taken.append(place)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)

    assert errors == []
    assert sorted(taken) == [*range(places)]
    complete = opened(storage).optuna_study.get_trials(states=[TrialState.COMPLETE])
    assert sorted(each.user_attrs[PLACE] for each in complete) == [*range(places)]


def fall_silent(found: Search, trial: optuna.Trial) -> None:
    """Let the last sign of life of a trial be a long time ago, and look for lost ones."""
    found.storage.record_heartbeat(trial._trial_id)
    change = "UPDATE trial_heartbeats SET heartbeat = '2001-01-01 00:00:00' WHERE trial_id = "
    with found.storage.engine.begin() as connection:
        connection.execute(text(f"{change}{trial._trial_id}"))
    found._next_look = 0.0
    found.fail_lost()


def state_of(found: Search, trial: optuna.Trial) -> TrialState:
    return found.optuna_study.trials[trial.number].state


def test_a_worker_that_was_killed_before_it_took_a_place_holds_nobody_up(tmp_path):
    found = opened(tmp_path)
    found.optuna_study.ask()  # as far as a worker comes before its first heartbeat
    killed = found.optuna_study.ask()
    found.storage.record_heartbeat(killed._trial_id)
    begun = time.monotonic()

    assert begin(found, 1)[1] == 0
    assert time.monotonic() - begun < 5
    assert found.places(1) == (0, 1, 0)


def test_a_place_is_free_again_after_its_worker_was_killed_as_it_took_it(tmp_path):
    found = opened(tmp_path)
    killed = found.optuna_study.ask()
    found.storage.record_heartbeat(killed._trial_id)
    found.claim(f"{PLACE}.0", killed.number)

    assert [begin(found, 2)[1] for _ in range(2)] == [1, None]
    fall_silent(found, killed)
    assert state_of(found, killed) == TrialState.FAIL
    assert begin(found, 2)[1] == 0


def test_a_trial_of_a_different_program_is_not_failed_however_silent_it_is(tmp_path):
    found = opened(tmp_path)
    other = found.optuna_study.ask()
    fall_silent(found, other)

    assert state_of(found, other) == TrialState.RUNNING
    assert begin(found, 1)[1] == 0
    found.optuna_study.tell(other, 1.0)
    assert found.places(2) == (1, 1, 0)


def test_a_trial_that_ends_its_worker_each_time_is_begun_three_times(tmp_path):
    found = opened(tmp_path)
    for _ in range(3):
        trial, place = begin(found, 2)
        assert (place, found.given_up()) == (0, [])
        fall_silent(found, trial)

    assert found.places(2) == (1, 0, 1)
    assert begin(found, 2)[1] == 1
    assert begin(found, 2)[1] is None
    assert found.given_up() == [0]


def test_a_trial_that_somebody_interrupts_is_repeated_as_often_as_need_be(tmp_path):
    found = opened(tmp_path)
    for _ in range(5):
        trial, place = begin(found, 1)
        assert place == 0
        found.end(trial, TrialState.FAIL)
    assert found.given_up() == []


def test_workers_that_wait_look_for_lost_trials_about_once_a_second(tmp_path):
    found, statements = opened(tmp_path), []
    begin(found, 1)
    event.listen(found.storage.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for _ in range(50):
        found.fail_lost()
    assert 1 <= len(statements) <= 3


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(search, "LOCK_SECONDS", 0.01)
    monkeypatch.setattr(search, "AGAIN_SECONDS", 0.05)


def test_a_storage_that_is_away_for_a_while_costs_nothing_but_time(
    tmp_path, monkeypatch, impatient
):
    notes: list[str] = []
    found = opened(tmp_path, on_note=notes.append)
    requests = [
        lambda: trial.report(1.0, 1),
        lambda: trial.suggest_float("peak_lr", 0, 1),
        lambda: found.claim("k", "v"),
        lambda: begin(found, 2),
        lambda: found.end(trial, TrialState.COMPLETE, 1.0),
    ]
    trial, _ = begin(found, 2)
    for request in requests:
        with ExitStack() as stack:
            stack.enter_context(locked(tmp_path / "s.db"))
            timer = threading.Timer(0.2, stack.close)
            timer.start()
            request()
            timer.join()

    assert (trial.params.keys(), state_of(found, trial)) == ({"peak_lr"}, TrialState.COMPLETE)
    assert found.places(2) == (1, 1, 0)
    assert len(notes) == len(requests)
    assert "does not answer (database is locked): it is waited for, up to 60 s" in notes[0]


def test_a_storage_that_stays_away_is_one_line(tmp_path, monkeypatch, impatient, complains):
    monkeypatch.setattr(search, "PATIENCE_SECONDS", 0.2)
    found = opened(tmp_path)
    trial, _ = begin(found, 2)
    with locked(tmp_path / "s.db"):
        with complains("storage", "s.db", "database is locked", "give the same command again"):
            trial.report(1.0, 1)
        begun = time.monotonic()
        found.storage.beat(trial._trial_id)  # which the next one may mend
        with complains("no longer answers"):
            trial.report(1.0, 1)
        assert time.monotonic() - begun < 1


def test_a_file_that_was_removed_is_one_line(tmp_path, monkeypatch, impatient, complains):
    monkeypatch.setattr(search, "PATIENCE_SECONDS", 0.2)
    found = opened(tmp_path)
    trial, _ = begin(found, 2)
    found.storage.engine.dispose()
    (tmp_path / "s.db").unlink()
    with complains("storage", "s.db", "no such table", "give the same command again"):
        trial.report(1.0, 1)


@pytest.mark.parametrize(
    ("given", "module", "opened_with"),
    [
        ("postgresql://h/s", "psycopg2", "postgresql+psycopg://h/s"),
        ("postgresql://h/s", "psycopg", "postgresql://h/s"),
        ("postgresql+asyncpg://h/s", "psycopg2", "postgresql+asyncpg://h/s"),
    ],
)
def test_postgresql_means_the_driver_that_the_extra_installs(
    monkeypatch, given, module, opened_with
):
    there = {"psycopg", "psycopg2"} - {module}
    monkeypatch.setattr(search, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(search, "_PatientStorage", lambda url, *_, **more: url)
    assert search._open_storage(given, None) == opened_with


def test_a_trial_that_somebody_enqueued_comes_first_and_takes_a_place(tmp_path):
    found = opened(tmp_path)
    late = found.optuna_study.ask()
    found.optuna_study.enqueue_trial({"peak_lr": 0.5})

    assert found.take_place(late, 2) == 0
    trial, place = begin(found, 2)
    assert (trial.suggest_float("peak_lr", 0, 1), place) == (0.5, 1)


def test_trials_of_other_programs_count(tmp_path):
    found = opened(tmp_path)
    found.optuna_study.add_trial(optuna.create_trial(value=1.0))

    assert begin(found, 2)[1] == 1
    assert begin(found, 2)[1] is None


def test_of_several_claims_one_succeeds(tmp_path):
    workers = [opened(tmp_path) for _ in range(4)]
    got = []
    barrier = threading.Barrier(4)

    def claim(number: int) -> None:
        barrier.wait()
        got.append(workers[number].claim("k", f"of {number}"))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)

    assert len(got) == 4
    assert len(set(got)) == 1
    (holder,) = set(got)
    assert workers[0].claim("k", "late", instead_of="nobody's") == holder
    assert workers[0].claim("k", "late", instead_of=holder) == "late"


@pytest.mark.parametrize(
    ("storage", "module", "words"),
    [
        ("postgresql+psycopg://me:word@h/s", "psycopg", ("***@", "'lrrt-stage[postgresql]'")),
        ("postgresql+psycopg2://me@h/s", "psycopg2", ("pip install psycopg2-binary",)),
        ("mysql+pymysql://me:word@h/s", "pymysql", ("***@", "pip install pymysql")),
    ],
)
def test_a_driver_that_is_not_installed_is_named(complains, monkeypatch, storage, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with complains("driver", module, *words):
        open_search(
            "s", storage, "min", optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
        )
