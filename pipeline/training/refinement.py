"""A short search for the peak learning rate inside the suggested range."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from math import inf, isfinite, isnan

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from lrrt_stage import LRCurve, LRRange, LRRTError
from lrrt_stage.errors import first_line, unknown_name
from lrrt_stage.settings import hide_passwords, require
from lrrt_stage.state.weights import State
from pipeline.task.prepared import PreparedTask
from pipeline.task.setup import Direction
from pipeline.training.loop import Training, train
from pipeline.training.options import RefineOptions, ScheduleOptions, TrainOptions

__all__ = [
    "AfterEpoch",
    "best_range",
    "direction_of",
    "median_pruner",
    "peak_range",
    "propose",
    "refine",
]

FIRST_PEAKS = (0, 1 / 3, 2 / 3)
"""Peaks of the first trials, as parts of the log range below its maximum: spread evenly, where
random ones may lie close together. Then TPE models the loss, and the pruner may stop a trial."""
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 120
"""A running trial says this often that it is alive, and fails after so long without a sign."""
FINGERPRINT = "lrrt.fingerprint"
"""User attribute of the Optuna study: what its trials' losses depend on."""


AfterEpoch = Callable[[Training, bool], None]
OnTrial = Callable[[int, LRRange], AbstractContextManager[AfterEpoch]]


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
) -> optuna.Study:
    """Search the peak LR (log scale) for the best validation; return the Optuna study.

    The lowest validation loss is best, or the best value of ``options.metric``.

    Every trial is a short training from the weights ``state``, with the ``schedule`` of the
    training that follows. The first trial uses the maximum of the range, the next two lie a third
    and two thirds of the way to the minimum. TPE proposes the others, and the median pruner ends
    those that fall behind in the second half of their schedule. A trial that diverges has the worst
    value, an infinite one; so has one that is being ruined, by the ``curve`` of the range test of
    these weights, as soon as it is noticed. An interrupted search that is run again proposes what
    it would have proposed. Searches may share an Optuna study at the same time. Without a storage,
    it is in ``optuna.db`` in the current folder.

    ``fingerprint`` stands for all that a trial's loss depends on. The Optuna study keeps it, and is
    continued only with the same one; None: not checked.

    ``on_trial(number, range)`` is a context manager around each trial. It yields a function that
    is called after every epoch with the training so far and whether the trial is pruned now.

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

    def objective(trial: optuna.Trial) -> float:
        peak = trial.suggest_float("peak_lr", narrowed.min, narrowed.max, log=True)
        lr_range = peak_range(peak, narrowed)
        trial_options = TrainOptions(
            **asdict(schedule or ScheduleOptions()), epochs=trial_epochs, attempts=1
        )
        with around_trial(_finished(trial.study), lr_range) as after_epoch:

            def on_epoch(training: Training) -> None:
                ended = len(training.epochs) == trial_epochs or training.reason != ""
                if not training.reason:
                    trial.report(value_of(training), len(training.epochs))
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's for the heartbeat
        optuna_study = _open_optuna_study(study_name, options, direction)
        if fingerprint is not None:
            _check_fingerprint(optuna_study, fingerprint)
        while _finished(optuna_study) < options.trials:
            propose(optuna_study, narrowed, options.search_seed)
            # Before the trial it fails those of searches that were killed.
            optuna_study.optimize(objective, n_trials=1)
    return optuna_study


def propose(optuna_study: optuna.Study, narrowed: LRRange, seed: int) -> None:
    """Let the next trial of an Optuna study have the peak that follows from those which ended."""
    done = _finished(optuna_study)
    waiting = optuna_study.get_trials(deepcopy=False, states=[TrialState.WAITING])
    if done < len(FIRST_PEAKS) and not waiting:
        peak = narrowed.max * (narrowed.min / narrowed.max) ** FIRST_PEAKS[done]
        optuna_study.enqueue_trial({"peak_lr": peak})
    # A sampler for every trial, so that an interrupted search continues as it would have.
    optuna_study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=len(FIRST_PEAKS), seed=seed + done
    )


def best_range(optuna_study: optuna.Study, narrowed: LRRange) -> LRRange | None:
    """Return the range of the best trial, or None if every trial diverged or was pruned."""
    complete = optuna_study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if not any(trial.value is not None and isfinite(trial.value) for trial in complete):
        return None
    return peak_range(optuna_study.best_trial.params["peak_lr"], narrowed)


def peak_range(peak: float, narrowed: LRRange) -> LRRange:
    """Return the range below ``peak`` with the width of ``narrowed``."""
    return LRRange(peak * narrowed.min / narrowed.max, peak)


def median_pruner(trial_epochs: int) -> optuna.pruners.MedianPruner:
    """Return the pruner that ends a trial which falls behind in the second half of its epochs."""
    return optuna.pruners.MedianPruner(
        n_startup_trials=len(FIRST_PEAKS), n_warmup_steps=-(-trial_epochs // 2)
    )


def _open_optuna_study(
    study_name: str, options: RefineOptions, direction: Direction
) -> optuna.Study:
    try:
        storage = optuna.storages.RDBStorage(
            options.storage or "sqlite:///optuna.db",
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )
        return optuna.create_study(
            study_name=study_name,
            storage=storage,
            load_if_exists=True,
            pruner=median_pruner(options.epochs_per_trial()),
            direction=f"{direction}imize",
        )
    except Exception as error:  # SQLAlchemy's, a driver's, Optuna's
        raise LRRTError(
            hide_passwords(
                f"storage {options.storage!r} cannot be used ({first_line(error)}): give an Optuna "
                "storage URL such as sqlite:///optuna.db"
            )
        ) from error


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


def _check_fingerprint(optuna_study: optuna.Study, fingerprint: str) -> None:
    if not optuna_study.get_trials(deepcopy=False) and FINGERPRINT not in optuna_study.user_attrs:
        optuna_study.set_user_attr(FINGERPRINT, fingerprint)
    require(
        optuna_study.user_attrs.get(FINGERPRINT) == fingerprint,
        f"Optuna study {optuna_study.study_name!r} belongs to a different range test, options, or "
        "code: give a different study_name, or none for a name of its own",
    )


def _finished(optuna_study: optuna.Study) -> int:
    states = [TrialState.COMPLETE, TrialState.PRUNED]
    return len(optuna_study.get_trials(deepcopy=False, states=states))
