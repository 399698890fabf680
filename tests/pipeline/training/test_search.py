from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.training import search
from pipeline.training.search import PLACE, Search, open_search
from tests.postgresql import postgresql_address  # noqa: F401

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore:.*")


def opened(storage: Path | str, name: str = "s") -> Search:
    return open_search(
        name,
        storage if isinstance(storage, str) else f"sqlite:///{storage}/s.db",
        "min",
        optuna.samplers.RandomSampler(),
        optuna.pruners.NopPruner(),
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


def test_a_worker_that_was_killed_before_its_first_sign_of_life_holds_nobody_up(
    tmp_path, monkeypatch
):
    found = opened(tmp_path)
    lost = found.optuna_study.ask()  # as far as a worker comes before its first heartbeat
    monkeypatch.setattr(search, "GRACE_SECONDS", 0.3)
    begun = time.monotonic()
    _, place = begin(found, 1)

    assert place == 0
    assert 0.3 <= time.monotonic() - begun < 10
    assert not found.has_failed(lost.number + 1)
    assert found.has_failed(lost.number)


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
