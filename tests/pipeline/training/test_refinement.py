from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lrrt_stage import LRRange
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime, Task
from pipeline.training import refinement, search
from pipeline.training.loop import Training
from pipeline.training.options import RefineOptions, ScheduleOptions
from pipeline.training.refinement import best_range, peak_range, refine
from tests.workers import locked

optuna.logging.set_verbosity(optuna.logging.WARNING)

NARROWED = LRRange(1e-4, 0.2)


@pytest.fixture(scope="module")
def prepared() -> PreparedTask:
    task = Task(model="mlp", model_args={"width": 16, "depth": 1}, batch_size=128)
    return PreparedTask(task, Runtime(device="cpu"))


class Follower:
    """An ``on_trial`` that keeps what it is told; it may press Ctrl-C in one of the trials."""

    def __init__(self, interrupt: int | None = None, epoch: int = 1) -> None:
        self.interrupt, self.epoch = interrupt, epoch
        self.ranges: dict[int, LRRange] = {}
        self.epochs: dict[int, list[tuple[int, bool]]] = {}
        self.first_losses: dict[int, float] = {}
        self.failed: dict[int, bool] = {}

    @contextmanager
    def __call__(self, number: int, lr_range: LRRange) -> Iterator:
        self.ranges[number] = lr_range
        self.epochs[number] = []

        def after_epoch(training: Training, pruned: bool) -> None:
            self.epochs[number].append((len(training.epochs), pruned))
            self.first_losses[number] = training.train_loss[0]
            if number == self.interrupt and len(training.epochs) == self.epoch:
                raise KeyboardInterrupt

        self.failed[number] = True
        yield after_epoch
        self.failed[number] = False


def run(
    prepared: PreparedTask,
    folder: Path,
    follower: Follower | None = None,
    narrowed: LRRange = NARROWED,
    on_note=None,
    **options,
) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    options = {"trials": 6, "trial_epochs": 2, **options}
    return refine(
        prepared,
        prepared.initial_weights(),
        narrowed,
        RefineOptions(storage=f"sqlite:///{folder}/study.db", **options),
        study_name="study",
        on_trial=follower,
        on_note=on_note,
    )


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])


def peaks(study: optuna.Study) -> list[float]:
    return [trial.params["peak_lr"] for trial in finished(study)]


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory) -> tuple[optuna.Study, Follower]:
    follower = Follower()
    study = run(prepared, tmp_path_factory.mktemp("trials"), follower, trials=10, trial_epochs=4)
    return study, follower


class TestTrials:
    def test_there_are_as_many_as_were_asked_for(self, done):
        study, follower = done

        assert len(finished(study)) == len(study.trials) == 10
        assert list(follower.ranges) == list(range(10))

    def test_all_start_from_the_same_weights_and_batch(self, done):
        _, follower = done

        assert len(follower.first_losses) == 10
        assert len(set(follower.first_losses.values())) == 1

    def test_the_first_takes_the_narrowed_range_itself(self, done):
        study, follower = done

        assert peaks(study)[0] == 0.2
        assert follower.ranges[0].max == 0.2
        assert follower.ranges[0].min == pytest.approx(1e-4, rel=1e-12)

    def test_the_first_three_are_spread_evenly_over_the_range(self, done):
        # From 0.2 down to 1e-4 are 3.301 decades.
        assert peaks(done[0])[:3] == pytest.approx(
            [0.2, 0.2 / 2000 ** (1 / 3), 0.2 / 2000 ** (2 / 3)]
        )

    def test_all_peaks_lie_in_the_narrowed_range_and_differ(self, done):
        found = peaks(done[0])

        assert all(1e-4 <= peak <= 0.2 for peak in found)
        assert len(set(found)) == 10

    def test_every_range_ends_at_its_peak_and_is_as_wide_as_the_narrowed_one(self, done):
        study, follower = done

        assert [each.max for each in follower.ranges.values()] == peaks(study)
        for each in follower.ranges.values():
            assert each.max / each.min == pytest.approx(2000, rel=1e-9)

    def test_the_loss_is_that_of_the_last_epoch(self, done):
        for trial in done[0].get_trials(states=[TrialState.COMPLETE]):
            assert trial.value == trial.intermediate_values[4]
            assert sorted(trial.intermediate_values) == [1, 2, 3, 4]

    def test_a_pruned_trial_is_told_as_pruned_and_others_are_not(self, done):
        study, follower = done
        pruned = [t.number for t in study.get_trials(states=[TrialState.PRUNED])]

        assert pruned  # the low peaks of so wide a range learn too slowly
        told = [n for n, epochs in follower.epochs.items() if any(flag for _, flag in epochs)]
        assert told == pruned
        for number, epochs in follower.epochs.items():
            flags = [flag for _, flag in epochs]
            assert flags == [False] * (len(flags) - 1) + [number in pruned]

    def test_a_pruned_trial_is_no_failure(self, done):
        assert not any(done[1].failed.values())

    def test_none_of_the_first_three_is_pruned(self, done):
        assert [trial.state for trial in done[0].trials[:3]] == [TrialState.COMPLETE] * 3

    def test_a_trial_that_is_pruned_had_its_first_half(self, done):
        study, follower = done
        for trial in study.get_trials(states=[TrialState.PRUNED]):
            assert 2 <= follower.epochs[trial.number][-1][0] < 4

    def test_the_best_range_is_that_of_the_lowest_loss(self, done):
        study, follower = done
        values = {t.number: t.value for t in study.get_trials(states=[TrialState.COMPLETE])}
        best = min(values, key=values.__getitem__)

        assert best_range(study, NARROWED) == follower.ranges[best]


def test_a_trial_of_an_odd_number_of_epochs_has_its_first_half_too(prepared, tmp_path):
    follower = Follower()
    study = run(prepared, tmp_path, follower, trials=10, trial_epochs=3)
    pruned = [trial.number for trial in study.get_trials(states=[TrialState.PRUNED])]

    assert pruned
    assert all(follower.epochs[number][-1][0] == 2 for number in pruned)


def test_one_seed_is_one_search_and_another_seed_another(prepared, tmp_path):
    first = run(prepared, tmp_path / "first")
    second = run(prepared, tmp_path / "second")
    other = run(prepared, tmp_path / "other", search_seed=50)

    assert peaks(second) == peaks(first)
    assert [trial.value for trial in second.trials] == [trial.value for trial in first.trials]
    assert peaks(other)[:3] == peaks(first)[:3]
    assert not set(peaks(other)[3:]) & set(peaks(first)[3:])


@pytest.mark.parametrize(("trial", "epoch"), [(0, 1), (3, 1), (3, 2), (5, 1)])
def test_an_interrupted_study_goes_on_as_it_would_have(prepared, tmp_path, trial, epoch):
    expected = run(prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path / "broken", Follower(trial, epoch))
    follower = Follower()
    study = run(prepared, tmp_path / "broken", follower)

    assert list(follower.ranges) == list(range(trial, 6))
    assert peaks(study) == peaks(expected)
    assert [t.value for t in finished(study)] == [t.value for t in finished(expected)]


def leave_running(study: optuna.Study, place: int) -> int:
    """Leave a trial as a process does that is killed in it, or that still runs it."""
    trial = study.ask()
    trial.set_user_attr("lrrt.place", place)
    study._storage.record_heartbeat(trial._trial_id)
    return trial.number


def test_a_trial_of_a_search_that_was_killed_fails_and_its_proposal_is_made_again(
    prepared, tmp_path, monkeypatch
):
    expected = run(prepared, tmp_path / "whole", trials=4)
    left = leave_running(run(prepared, tmp_path / "broken", trials=2), 2)
    monkeypatch.setattr(search, "GRACE_SECONDS", 1)
    time.sleep(2.1)
    study = run(prepared, tmp_path / "broken", trials=4)

    assert study.trials[left].state == TrialState.FAIL
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1
    assert peaks(study) == peaks(expected)


def test_a_trial_of_a_search_that_runs_is_left_to_it_and_waited_for(
    prepared, tmp_path, monkeypatch
):
    study = run(prepared, tmp_path, trials=2)
    other, waited = study.ask(), []
    other.set_user_attr("lrrt.place", 2)
    study._storage.record_heartbeat(other._trial_id)
    before = len(study.trials)

    def sleep(seconds: float) -> None:
        waited.append([trial.state for trial in study.trials])
        study.tell(other, 0.5)

    monkeypatch.setattr(refinement.time, "sleep", sleep)
    done = run(prepared, tmp_path, trials=4)

    states = [TrialState.COMPLETE] * 2 + [TrialState.RUNNING, TrialState.COMPLETE]
    assert waited == [states]
    assert len(done.trials) == before + 1 == 4
    assert done.trials[2].value == 0.5


def test_a_trial_that_another_worker_took_for_lost_does_not_count_and_is_made_again(
    prepared, tmp_path
):
    expected = run(prepared, tmp_path / "whole", trials=3)
    study = optuna.create_study(
        study_name="study", storage=f"sqlite:///{Path(tmp_path, 'lost').absolute()}.db"
    )
    lost = []

    @contextmanager
    def follow(number: int, lr_range: LRRange) -> Iterator:
        def after_epoch(training: Training, pruned: bool) -> None:
            if number == 1 and not lost:
                study.tell(1, state=TrialState.FAIL)
                lost.append(lr_range.max)

        yield after_epoch

    found = refine(
        prepared,
        prepared.initial_weights(),
        NARROWED,
        RefineOptions(trials=3, trial_epochs=2, storage=f"sqlite:///{tmp_path}/lost.db"),
        study_name="study",
        on_trial=follow,
    )

    assert lost
    assert [t.state for t in found.trials].count(TrialState.FAIL) == 1
    assert peaks(found) == peaks(expected)
    assert len({t.user_attrs["lrrt.place"] for t in finished(found)}) == 3


def test_the_peaks_are_those_of_fixed_trials_and_a_tpe_sampler_of_its_own_for_each(done):
    study, _ = done
    plain = optuna.create_study(pruner=refinement.median_pruner(4))
    for place, trial in enumerate(study.trials):
        if place < 3:
            peak = 0.2 * (1e-4 / 0.2) ** (place / 3)
            plain.enqueue_trial({"peak_lr": peak})
        plain.sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=place)
        again = plain.ask()
        assert again.suggest_float("peak_lr", 1e-4, 0.2, log=True) == trial.params["peak_lr"]
        for epoch, value in trial.intermediate_values.items():
            again.report(value, epoch)
        plain.tell(again, trial.value if trial.state == TrialState.COMPLETE else None, trial.state)


def test_a_study_is_continued_with_its_own_fingerprint_only(prepared, tmp_path, complains):
    def search(fingerprint: str | None, name: str = "s") -> optuna.Study:
        options = RefineOptions(trials=1, trial_epochs=1, storage=f"sqlite:///{tmp_path}/s.db")
        state = prepared.initial_weights()
        return refine(prepared, state, NARROWED, options, study_name=name, fingerprint=fingerprint)

    search("one")
    assert len(search("one").trials) == 1
    with complains("study 's'", "study_name"):
        search("two")
    search(None, "without")
    with complains("study 'without'", "study_name"):
        search("one", "without")


def test_a_study_that_is_complete_takes_no_more_trials(prepared, tmp_path):
    done = run(prepared, tmp_path, trials=2)
    follower = Follower()
    again = run(prepared, tmp_path, follower, trials=2)

    assert follower.ranges == {}
    assert peaks(again) == peaks(done)


def test_more_trials_go_on_where_the_study_was(prepared, tmp_path):
    expected = run(prepared, tmp_path / "whole", trials=5)
    run(prepared, tmp_path / "parts", trials=2)

    assert peaks(run(prepared, tmp_path / "parts", trials=5)) == peaks(expected)


def test_a_trial_that_diverges_has_an_infinite_loss_and_the_search_goes_on(prepared, tmp_path):
    narrowed = LRRange(1e-3, 1e6)
    follower = Follower()
    study = run(prepared, tmp_path, follower, narrowed, trials=8, trial_epochs=4)
    first = study.trials[0]

    assert first.params["peak_lr"] == 1e6
    assert first.state == TrialState.COMPLETE
    assert first.value == math.inf
    assert len(follower.epochs[0]) < 4
    assert len(finished(study)) == 8
    assert not any(follower.failed.values())
    best = best_range(study, narrowed)
    assert best is not None
    assert best.max < 1e5


def test_a_search_of_which_all_trials_diverge_has_no_best_range(prepared, tmp_path):
    narrowed = LRRange(1e5, 1e6)
    study = run(prepared, tmp_path, None, narrowed, trials=5, trial_epochs=5)

    assert [trial.value for trial in study.trials] == [math.inf] * 5
    assert best_range(study, narrowed) is None


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(search, "LOCK_SECONDS", 0.01)
    monkeypatch.setattr(search, "AGAIN_SECONDS", 0.05)


def test_a_search_goes_on_where_its_storage_was_away(prepared, tmp_path, impatient):
    expected = run(prepared, tmp_path / "whole", trials=2)

    @contextmanager
    def follow(number: int, lr_range: LRRange) -> Iterator:
        def after_epoch(training: Training, pruned: bool) -> None:
            lock = ExitStack()
            lock.enter_context(locked(tmp_path / "away" / "study.db"))
            threading.Timer(0.2, lock.close).start()

        yield after_epoch

    study = run(prepared, tmp_path / "away", follow, trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert peaks(study) == peaks(expected)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_a_search_that_ends_does_not_wait_for_its_storage(prepared, tmp_path, impatient, kind):
    lock = ExitStack()

    @contextmanager
    def follow(number: int, lr_range: LRRange) -> Iterator:
        def after_epoch(training: Training, pruned: bool) -> None:
            lock.enter_context(locked(tmp_path / "study.db"))
            raise kind("of a test")

        yield after_epoch

    begun = time.monotonic()
    with lock, pytest.raises(kind, match="of a test"):
        run(prepared, tmp_path, follow, trials=2)
    assert time.monotonic() - begun < 20


def test_a_trial_that_was_lost_three_times_is_said_and_the_search_ends(prepared, tmp_path):
    study = run(prepared, tmp_path, trials=1)
    for _ in range(3):
        trial = study.ask()
        trial.set_user_attr("lrrt.place", 1)
        trial.set_user_attr("lrrt.lost", True)
        study.tell(trial, state=TrialState.FAIL)
    notes: list[str] = []
    done = run(prepared, tmp_path, trials=3, on_note=notes.append)

    assert sorted(t.user_attrs["lrrt.place"] for t in finished(done)) == [0, 2]
    assert [note[:28] for note in notes] == ["trial 1 was begun 3 times, a"]


def test_the_best_trial_is_one_with_a_peak():
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=-1.0))
    assert best_range(study, NARROWED) is None


@pytest.mark.parametrize(
    "storage", ["not a url", "nosuchdb://x", "sqlite:////no/such/folder/study.db"]
)
def test_a_storage_that_cannot_be_used_is_named(prepared, complains, storage):
    with complains(repr(storage), "sqlite:///optuna.db"):
        refine(
            prepared,
            prepared.initial_weights(),
            NARROWED,
            RefineOptions(trials=1, storage=storage),
            study_name="study",
        )


def test_an_error_in_a_trial_is_not_swallowed(prepared, tmp_path):
    @contextmanager
    def broken(number: int, lr_range: LRRange) -> Iterator:
        raise OSError("the tracking server is gone")
        yield

    with pytest.raises(OSError, match="the tracking server is gone"):
        run(prepared, tmp_path, broken)


@pytest.mark.parametrize("schedule", ["triangular", "constant"])
def test_trials_take_the_schedule_that_training_will(prepared, tmp_path, schedule):
    seen = []

    @contextmanager
    def follow(number: int, lr_range: LRRange) -> Iterator:
        yield lambda training, pruned: seen.append((training.lr[0], lr_range))

    refine(
        prepared,
        prepared.initial_weights(),
        LRRange(0.01, 0.1),
        RefineOptions(trials=1, trial_epochs=1, storage=f"sqlite:///{tmp_path}/s.db"),
        ScheduleOptions(schedule),
        study_name="s",
        on_trial=follow,
    )

    assert seen[0][0] == pytest.approx(0.1 if schedule == "constant" else 0.01, rel=1e-9)


def test_a_peak_has_a_range_of_the_narrowed_width_below_it():
    found = peak_range(0.03, LRRange(0.01, 0.2))

    assert found.max == 0.03
    assert found.min == pytest.approx(0.0015, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trials", 0),
        ("trials", -1),
        ("trial_epochs", 0),
        ("trial_epochs", -5),
        ("search_seed", -1),
    ],
)
def test_a_value_out_of_bounds_is_named_with_a_remedy(complains, field, value):
    with complains(f"{field}={value}", ": "):
        RefineOptions(**{field: value})


def test_a_seed_that_the_sampler_cannot_take_is_refused(complains):
    # NumPy's legacy generator, which Optuna draws from, takes 32 bits.
    with complains(f"search_seed={2**32}"):
        RefineOptions(search_seed=2**32)


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file:s?mode=memory&uri=true",
    ],
)
def test_a_storage_in_memory_is_refused(complains, storage):
    with complains(f"storage='{storage}' is in memory", "sqlite:///optuna.db"):
        RefineOptions(storage=storage)


def test_a_trial_is_a_quarter_of_the_training():
    assert RefineOptions().epochs_per_trial() == 5
    assert [RefineOptions().epochs_per_trial(epochs) for epochs in (1, 3, 8, 100)] == [1, 1, 2, 25]
    assert RefineOptions(trial_epochs=3).epochs_per_trial(100) == 3
