"""Several processes share one search."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
import pytest

from pipeline.training.refinement import WAIT_SECONDS
from tests.postgresql import own_postgresql, postgresql_address  # noqa: F401
from tests.workers import ended, process_of, start, until

pytestmark = [pytest.mark.slow, pytest.mark.starts_with("lrrt")]
TRIALS, RANGE, PARENT = 8, "refined_range.json", "mlflow.parentRunId"


def options(storage, trials=TRIALS):
    return (
        *("--trials", trials, "--trial-epochs", 2),
        *("--study-name", "shared", "--storage", storage),
    )


def finish(workers):
    """What the workers have told, all of which end well."""
    told = []
    for worker in workers:
        _, err = worker.communicate(timeout=90)
        assert worker.returncode == 0, err
        told.append(err)
    return told


def check_search(storage, trials=TRIALS):
    """The study, of which every place was finished once, at a peak of its own."""
    study = optuna.load_study(study_name="shared", storage=storage)
    done = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(t.user_attrs["lrrt.place"] for t in done) == [*range(trials)]
    assert len({t.params["peak_lr"] for t in done}) == trials
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    return study, done


def check_runs(store, study, done, finished):
    """All runs are in one tree, and all workers that finished have the same range."""
    holder = study.user_attrs["lrrt.run_id"]
    refines, trials = store.runs("refine"), store.runs("trial")
    assert holder in [run.info.run_id for run in refines]
    assert {r.data.tags.get(PARENT) for r in refines if r.info.run_id != holder} == {holder}
    assert PARENT not in mlflow.get_run(holder).data.tags
    assert {run.data.tags[PARENT] for run in trials} == {holder}
    ended = [run for run in trials if run.info.status == "FINISHED"]
    assert sorted(int(run.data.params["trial"]) for run in ended) == [*range(len(done))]
    whole = [run for run in refines if run.info.status == "FINISHED"]
    assert len(whole) == finished
    assert len({store.file(run, RANGE).read_text() for run in whole}) == 1
    assert len({run.data.metrics["val_loss"] for run in whole}) == 1
    assert len({store.file(run, "trials.csv").read_text() for run in whole}) == 1
    return whole


@pytest.mark.scale
def test_four_workers_on_postgresql_of_which_one_is_killed(store, postgresql_address):  # noqa: F811
    more = options(postgresql_address)
    victim = start("victim", *more, pause=600)
    workers = [start(str(n), *more) for n in range(3)]
    with ended(victim, *workers):
        os.kill(process_of("victim"), signal.SIGKILL)
        told = finish(workers)
    study, done = check_search(postgresql_address)
    (lost,) = (t for t in study.trials if t.state.name == "FAIL" and t.params)
    (again,) = (t for t in done if t.user_attrs["lrrt.place"] == lost.user_attrs["lrrt.place"])
    assert again.params == lost.params
    whole = check_runs(store, study, done, finished=3)
    for run in whole:
        store.run("train", "--epochs", 1, "--refine-run-id", run.info.run_id)
    assert len({r.data.metrics["trained_lr_max"] for r in store.runs("train")}) == 1
    assert sum("opened search shared" in err for err in told) <= 1
    assert sum("joined search shared" in err for err in told) >= 2
    assert any("waiting for" in err for err in told)
    assert not [err for err in told if "not-a-secret" in err or "Traceback" in err]
    logged = [run.data.to_dictionary() for run in store.runs()]
    assert "not-a-secret" not in str(logged)


@pytest.mark.scale
def test_a_server_that_starts_again_costs_nothing_but_time(store, own_postgresql):  # noqa: F811
    workers = [
        start(str(n), *options(own_postgresql.address, 4), pause=0.5, GRACE="60") for n in range(2)
    ]
    with ended(*workers):
        for n in range(2):
            process_of(str(n))
        own_postgresql.stop()
        time.sleep(3)
        own_postgresql.start()
        told = finish(workers)
    study, _ = check_search(own_postgresql.address, 4)
    assert not [trial for trial in study.trials if trial.params and trial.state.name == "FAIL"]
    assert all("does not answer" in err and "Traceback" not in err for err in told)


@pytest.mark.scale
def test_a_server_that_stays_away_is_one_line(store, own_postgresql):  # noqa: F811
    worker = start("0", *options(own_postgresql.address), PATIENCE="2")
    with ended(worker):
        process_of("0")
        own_postgresql.stop()
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == 2, err
    (line,) = (line for line in err.splitlines() if line.startswith("Error: "))
    assert "no longer answers" in line
    assert "give the same command again" in line
    logged = str([run.data.to_dictionary() for run in store.runs()])
    for text in (err, logged):
        assert "not-a-secret" not in text
        assert "Traceback" not in text


@pytest.mark.scale
def test_a_trial_that_ends_its_worker_each_time_is_given_up(store):
    storage = "sqlite:///shared.db"
    for name in ("first", "second", "third"):
        victim = start(name, *options(storage, 1), pause=600)
        with ended(victim):
            os.kill(process_of(name), signal.SIGKILL)
    worker = start("last", *options(storage, 2))
    with ended(worker):
        (err,) = finish([worker])
    assert "trial 0 was begun 3 times, and its worker was ended each time" in err
    study = optuna.load_study(study_name="shared", storage=storage)
    places = [(t.state.name, t.user_attrs["lrrt.place"]) for t in study.trials]
    assert sorted(places) == [("COMPLETE", 1), *[("FAIL", 0)] * 3]


def test_two_workers_on_sqlite(store):
    more = options("sqlite:///shared.db", 5)
    workers = [start(str(n), *more, pause=0.1) for n in range(2)]
    with ended(*workers):
        told = finish(workers)
    study, done = check_search("sqlite:///shared.db", 5)
    check_runs(store, study, done, finished=2)
    assert sorted("opened search shared" in err for err in told) == [False, True]


def test_a_worker_that_waits_can_be_interrupted_and_the_other_one_goes_on(store):
    more = options("sqlite:///shared.db", 1)
    first = start("first", *more, pause=3)
    with ended(first):
        process_of("first")
        second = start("second", *more)
        with ended(second):
            line = until(second.stderr.readline)
            while "waiting for 1 trial of other workers: 0 of 1" not in line:
                assert line, "it does not wait"
                line = second.stderr.readline()
            second.send_signal(signal.SIGINT)
            _, err = second.communicate(timeout=30)
            assert second.returncode == 130, err
        finish([first])
    status = {run.info.status: run for run in store.runs("refine")}
    assert set(status) == {"FINISHED", "KILLED"}
    assert status["KILLED"].data.tags[PARENT] == status["FINISHED"].info.run_id


def test_a_search_that_one_worker_continues_later_has_a_run_of_its_own(store):
    more = options("sqlite:///shared.db", 2)
    store.run("refine", *more)
    outcome = store.run("refine", *more, "--trials", 3)
    assert "joined search shared" in outcome.err
    assert "2 of 3 trials are there" in outcome.err
    newest, first = store.runs("refine")
    assert PARENT not in newest.data.tags
    assert len(store.children(newest, "trial")) == 1
    assert len(store.children(first, "trial")) == 2
    assert "1 of 1 trials are there" in store.run("refine", *more, "--trials", 1).err


def test_workers_with_different_numbers_of_cores_share_a_search(store, monkeypatch):
    more = ("--trials", 1, "--trial-epochs", 1, "--storage", "sqlite:///shared.db")
    assert "opened search lrrt-" in store.run("refine", *more).err
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    assert "joined search lrrt-" in store.run("refine", *more).err


def test_a_search_whose_first_worker_died_unnoticed_has_a_new_run(store, monkeypatch):
    more = options("sqlite:///shared.db", 1)
    store.run("refine", *more)
    (first,) = store.runs("refine")
    mlflow.MlflowClient().set_terminated(first.info.run_id, "RUNNING")
    monkeypatch.setattr("mlflow_project.stages.refine.BETWEEN_SECONDS", 0.0)
    store.run("refine", *more, "--trials", 2)
    newest = store.runs("refine")[0]
    assert PARENT not in newest.data.tags
    assert len(store.children(newest, "trial")) == 1


def test_a_worker_between_two_trials_keeps_the_run_of_the_search(store, monkeypatch):
    more = options("sqlite:///shared.db", 2)
    store.run("refine", *more)
    client, (first,) = mlflow.MlflowClient(), store.runs("refine")
    client.set_terminated(first.info.run_id, "RUNNING")
    ends: list[Callable[[], object]] = []

    def sleep(seconds):  # the worker that opened the search begins its next trial, and ends it
        if not ends:
            ends.append(leave_open())
        elif seconds == WAIT_SECONDS:
            ends[0]()

    monkeypatch.setattr("time.sleep", sleep)
    store.run("refine", *more, "--trials", 4)
    newest = store.runs("refine")[0]
    assert newest.data.tags[PARENT] == first.info.run_id
    assert len(store.children(first, "trial")) == 3


def leave_open(run_id=None):
    """A search in which another worker runs a trial, whose run has this id."""
    study = optuna.load_study(study_name="shared", storage="sqlite:///shared.db")
    trial = study.ask()
    trial.set_user_attr("lrrt.place", 2)
    if run_id is not None:
        study.set_user_attr("lrrt.run_id", run_id)
    return lambda: study.tell(trial, 1.0)


@pytest.mark.parametrize("reason", ["elsewhere", "experiment", "deleted", "killed"])
def test_a_worker_that_joins_where_the_run_of_the_search_is_not_to_be_had(
    store, monkeypatch, reason
):
    client = mlflow.MlflowClient()
    store.run("refine", *options("sqlite:///shared.db", 2))
    (first,) = store.runs("refine")
    run_id = first.info.run_id
    if reason == "elsewhere":
        run_id = "0" * 32
    elif reason == "experiment":
        run_id = client.create_run(client.create_experiment("other")).info.run_id
    elif reason == "deleted":
        client.delete_run(run_id)
    else:
        client.set_terminated(run_id, "KILLED")
    end = leave_open(run_id)
    monkeypatch.setattr("pipeline.training.refinement.time.sleep", lambda _: end())
    outcome = store.run("refine", *options("sqlite:///shared.db", 4))
    newest = store.runs("refine")[0]
    parent = first.info.run_id if reason == "killed" else newest.info.run_id
    (trial,) = (r for r in store.runs("trial") if r.data.params["trial"] == "3")
    assert trial.data.tags[PARENT] == parent
    assert newest.data.tags.get(PARENT) == (parent if reason == "killed" else None)
    assert ("this worker's own run" in outcome.err) == (reason in ("elsewhere", "experiment"))


def test_a_refinement_of_main_stays_a_child_of_main_and_its_trials_join(store, monkeypatch):
    more = options("sqlite:///shared.db", 2)
    store.run("refine", *more)
    client, (first,) = mlflow.MlflowClient(), store.runs("refine")
    client.set_terminated(first.info.run_id, "RUNNING")
    monkeypatch.setattr("mlflow_project.stages.refine._goes_on", lambda *_: True)
    steps = ("--refine", "true", "--reuse", "true", "--epochs", 8)
    store.run("main", *store.SMALL, *steps, *more, "--trials", 3)
    newest = store.runs("refine")[0]
    assert newest.data.tags[PARENT] == store.one("main").info.run_id
    assert len(store.children(first, "trial")) == 3
    assert store.children(newest, "trial") == []


def test_a_server_that_is_not_there_is_one_line_within_seconds(store):
    address = "postgresql://me:hidden-word@127.0.0.1:1/searches"
    outcome = store.run("refine", *options(address), code=2)
    outcome.names("storage", "127.0.0.1:1", "start its server")
    assert "hidden-word" not in outcome.err
    assert Path("mlflow.db").exists()
