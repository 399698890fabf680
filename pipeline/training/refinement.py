"""A short search for the peak learning rate inside the suggested range."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from math import inf, isfinite, isnan
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrrt_stage import LRCurve, LRRange, LRRTError
from lrrt_stage.errors import unknown_name
from lrrt_stage.settings import require
from lrrt_stage.state.weights import State
from pipeline.task.prepared import PreparedTask
from pipeline.task.setup import Direction
from pipeline.training.loop import Training, train
from pipeline.training.options import RefineOptions, ScheduleOptions, TrainOptions
from pipeline.training.search import PLACE, TRIES, Search, open_search

__all__ = [
    "AfterEpoch",
    "PeakSampler",
    "TrialLost",
    "best_range",
    "best_trial",
    "direction_of",
    "median_pruner",
    "peak_range",
    "refine",
]

FIRST_PEAKS = (0, 1 / 3, 2 / 3)
"""Peaks of the first trials, as parts of the log range below its maximum: spread evenly, where
random ones may lie close together. Then TPE models the loss, and the pruner may stop a trial."""
WAIT_SECONDS = 1.0
"""How often a worker that waits for others looks what they have done."""
PEAK = "peak_lr"
"""Parameter of a trial, which one that a different program has added may not have."""
FINGERPRINT = "lrrt.fingerprint"
"""User attribute of the Optuna study: what its trials' losses depend on."""


AfterEpoch = Callable[[Training, bool], None]
OnTrial = Callable[[int, LRRange], AbstractContextManager[AfterEpoch]]


class TrialLost(LRRTError):
    """A trial of this worker was taken for lost, and another worker repeats it."""


def refine(
    prepared: PreparedTask,
    state: State,
    narrowed: LRRange,
    options: RefineOptions,
    schedule: ScheduleOptions | None = None,
    *,
    study_name: str,
    fingerprint: str | None = None,
    curve: LRCurve | None = None,
    on_trial: OnTrial | None = None,
    on_open: Callable[[Search], None] | None = None,
    on_wait: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> optuna.Study:
    """Search the peak LR (log scale) for the best validation; return the Optuna study.

    The lowest validation loss is best, or the best value of ``options.metric``.

    Every trial is a short training from the weights ``state``, with the ``schedule`` of the
    training that follows. The first trial uses the maximum of the range, the next two lie a third
    and two thirds of the way to the minimum. TPE proposes the others, and the median pruner ends
    those that fall behind in the second half of their schedule. A trial that diverges has the worst
    value, an infinite one; so has one that is being ruined, by the ``curve`` of the range test of
    these weights, as soon as it is noticed. An interrupted search that is run again proposes what
    it would have proposed. Without a storage, it is in ``optuna.db`` in the current folder.

    Any number of workers, processes that call this with the same storage and the same options,
    share the search. There are as many trials as ``options.trials`` over all of them. The trial of
    a worker that was killed is repeated, at the same peak, by one of the others. A worker for which
    nothing is left waits for the trials of the others, so that all end with the same trials. A
    trial whose worker was killed three times counts as failed. A storage that goes away meanwhile
    is waited for, up to a minute.

    ``fingerprint`` stands for all that a trial's loss depends on. The Optuna study keeps it, and is
    continued only with the same one; None: not checked.

    ``on_trial(number, range)`` is a context manager around each trial. It yields a function that
    is called after every epoch with the training so far and whether the trial is pruned now.
    ``on_open(search)`` is called before the first trial. ``on_wait(finished, running)`` is called
    again and again while there are only trials of others to wait for, with their numbers.
    ``on_note(line)`` is called with what a person should know.

    Raises
    ------
    LRRTError
        If there are no validation batches or no such metric; if the storage cannot be used, or
        holds an Optuna study of this name with a different fingerprint.
    """
    direction = direction_of(prepared, options.metric)
    prepared.check_validation()
    trial_epochs = options.epochs_per_trial()
    metric = "loss" if options.metric is None else options.metric
    worst = -inf if direction == "max" else inf
    around_trial = on_trial or (lambda *_: nullcontext(lambda *_: None))

    def value_of(training: Training) -> float:
        if training.reason:
            return worst
        value = training.epochs[-1].values()[f"val_{metric}"]
        return worst if isnan(value) else value

    def trained(trial: optuna.Trial, place: int) -> float:
        peak = trial.suggest_float(PEAK, narrowed.min, narrowed.max, log=True)
        lr_range = peak_range(peak, narrowed)
        trial_options = TrainOptions(
            **asdict(schedule or ScheduleOptions()), epochs=trial_epochs, attempts=1
        )
        with around_trial(place, lr_range) as after_epoch:

            def on_epoch(training: Training) -> None:
                ended = len(training.epochs) == trial_epochs or training.reason != ""
                if not training.reason:
                    try:
                        trial.report(value_of(training), len(training.epochs))
                    except UpdateFinishedTrialError as error:
                        raise TrialLost(
                            f"trial {place} had shown no sign of life for long, and was given to "
                            "another worker: nothing of it counts"
                        ) from error
                pruned = not ended and trial.should_prune()
                after_epoch(training, pruned)
                if pruned:
                    raise optuna.TrialPruned

            # Raised again outside of the context, for which a pruned trial is no failure.
            with suppress(optuna.TrialPruned):
                return value_of(
                    train(prepared, state, lr_range, trial_options, curve=curve, on_epoch=on_epoch)
                )
        raise optuna.TrialPruned

    def run_trial() -> None:
        trial = search.optuna_study.ask()
        with search.alive(trial):
            value, state = None, TrialState.FAIL
            try:
                place = search.take_place(trial, options.trials)
                if place is not None:
                    value, state = trained(trial, place), TrialState.COMPLETE
            except optuna.TrialPruned:
                state = TrialState.PRUNED
            except (TrialLost, UpdateFinishedTrialError):
                return  # this worker was out for so long that others have failed its trial
            except BaseException:
                search.storage.hurry()
                with suppress(LRRTError):
                    search.end(trial, state)
                raise
            search.end(trial, state, value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's for the heartbeat
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # which is given here as well
        search = open_search(
            study_name,
            options.storage or "sqlite:///optuna.db",
            direction,
            PeakSampler(narrowed, options.search_seed),
            median_pruner(trial_epochs),
            on_note,
        )
        if fingerprint is not None:
            _check_fingerprint(search, fingerprint)
        search.fail_lost()
        if on_open is not None:
            on_open(search)
        while (places := search.places(options.trials)).finished < options.trials:
            if places.free > 0:
                run_trial()
            else:
                if on_wait is not None:
                    on_wait(places.finished, places.running)
                time.sleep(WAIT_SECONDS)
            search.fail_lost()
        if on_note is not None:
            for place in search.given_up():
                on_note(
                    f"trial {place} was begun {TRIES} times, and its worker was ended each time, "
                    "perhaps for want of memory: it counts as failed"
                )
    return search.optuna_study


class PeakSampler(optuna.samplers.BaseSampler):
    """Proposes the peak of a trial by its place in the search: first fixed ones, then TPE's.

    A trial that failed, as its worker was killed for example, is repeated at its peak.
    A trial without a place has that of its number.
    """

    def __init__(self, narrowed: LRRange, seed: int) -> None:
        self.narrowed, self.seed = narrowed, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return no parameter: a trial is asked for before it has a place."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no parameter."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> float:
        """Return the peak."""
        place = trial.user_attrs.get(PLACE, trial.number)
        for failed in reversed(study.get_trials(deepcopy=False, states=[TrialState.FAIL])):
            is_same = failed.distributions.get(param_name) == param_distribution
            if is_same and failed.user_attrs.get(PLACE) == place:
                return float(failed.params[param_name])
        if place < len(FIRST_PEAKS):
            return float(
                self.narrowed.max * (self.narrowed.min / self.narrowed.max) ** FIRST_PEAKS[place]
            )
        # One for every trial, so that an interrupted search continues as it would have. It takes
        # the trials that others run for bad ones, and looks elsewhere.
        tpe = optuna.samplers.TPESampler(
            n_startup_trials=len(FIRST_PEAKS), seed=self.seed + place, constant_liar=True
        )
        space = tpe.infer_relative_search_space(study, trial)
        proposed = tpe.sample_relative(study, trial, space)
        if param_name not in proposed:
            return float(tpe.sample_independent(study, trial, param_name, param_distribution))
        return float(proposed[param_name])


def best_trial(optuna_study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial, the first of equal ones; None if every one diverged or was pruned."""
    complete = optuna_study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    values = {
        each.number: each.value
        for each in complete
        if each.value is not None and isfinite(each.value) and PEAK in each.params
    }
    if not values:
        return None
    sign = -1 if optuna_study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    best = min(values, key=lambda number: (sign * values[number], number))
    return next(each for each in complete if each.number == best)


def best_range(optuna_study: optuna.Study, narrowed: LRRange) -> LRRange | None:
    """Return the range of the best trial, or None if every trial diverged or was pruned."""
    best = best_trial(optuna_study)
    return None if best is None else peak_range(best.params[PEAK], narrowed)


def peak_range(peak: float, narrowed: LRRange) -> LRRange:
    """Return the range below ``peak`` with the width of ``narrowed``."""
    return LRRange(peak * narrowed.min / narrowed.max, peak)


def median_pruner(trial_epochs: int) -> optuna.pruners.MedianPruner:
    """Return the pruner that ends a trial which falls behind in the second half of its epochs."""
    return optuna.pruners.MedianPruner(
        n_startup_trials=len(FIRST_PEAKS), n_warmup_steps=-(-trial_epochs // 2)
    )


def direction_of(prepared: PreparedTask, metric: str | None) -> Direction:
    """Return which values of a validation metric are better; None: of the loss.

    Raises
    ------
    LRRTError
        If there are no validation batches, or no such metric.
    """
    setup = prepared.setup()
    require(
        setup.val_batches is not None,
        f"refine compares short trainings by validation, and setup {prepared.task.setup!r} has no "
        "val_batches: add them, or train with refine=false",
    )
    if metric is None:
        return "min"
    if metric not in setup.directions:
        raise unknown_name("metric", metric, setup.directions)
    return setup.directions[metric]


def _check_fingerprint(search: Search, fingerprint: str) -> None:
    optuna_study = search.optuna_study
    if not search.trials:
        search.claim(FINGERPRINT, fingerprint)
    require(
        optuna_study.user_attrs.get(FINGERPRINT) == fingerprint,
        f"Optuna study {optuna_study.study_name!r} belongs to a different range test, options, "
        "code, device, or version of torch: use the same for all workers, or give a "
        "different study_name, or none for a name of its own",
    )
