"""A short search for the peak learning rate inside the narrowed range."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from lrrt_stage import LRRange, LRRTError
from lrrt_stage.errors import first_line
from lrrt_stage.settings import Options, hide_passwords, require, setting
from lrrt_stage.state.weights import State
from pipeline.task.prepared import PreparedTask
from pipeline.training.loop import Training, TrainOptions, train

__all__ = ["RefineOptions", "best_range", "peak_range", "refine"]

RANDOM_TRIALS = 3
"""Trials before TPE models the loss and before the pruner may stop one."""

MARK, HOST, PID = "lrrt.fingerprint", "lrrt.host", "lrrt.pid"
"""User attributes: of a study what it searches, of a trial which process runs it."""


@dataclass(frozen=True)
class RefineOptions(Options):
    """How much is searched, and where the study is kept."""

    trials: int = setting(
        8, "Trials of the search, those of an earlier session counted in.", minimum=1
    )
    trial_epochs: int = setting(1, "Epochs of each trial's short one-cycle.", minimum=1)
    search_seed: int = setting(0, "Seed of the search.", minimum=0)
    storage: str = setting(
        "sqlite:///optuna.db", "Optuna storage URL, where the study can be gone on with."
    )
    study_name: str | None = setting(
        None, "Name of the study; none: made from the range-test run and these options."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        highest = 2**32 - 1 - self.trials  # NumPy's bound; each trial has a seed of its own
        require(
            self.search_seed <= highest,
            f"search_seed={self.search_seed} must be at most {highest}: the default is 0",
        )


AfterEpoch = Callable[[Training, bool], None]
OnTrial = Callable[[int, LRRange], AbstractContextManager[AfterEpoch]]


def refine(
    prepared: PreparedTask,
    state: State,
    narrowed: LRRange,
    options: RefineOptions,
    schedule: str = "one-cycle",
    *,
    study_name: str,
    mark: str | None = None,
    on_trial: OnTrial | None = None,
) -> optuna.Study:
    """Search the peak LR (log scale) for the lowest validation loss; return the study.

    Every trial is a short training from the very weights ``state``, with the ``schedule`` of the
    training that follows. The first takes the narrowed
    maximum. TPE proposes the others; the median pruner ends those that fall behind in the second
    half of their schedule. A trial that diverges has an infinite loss. Interrupted and run
    again, the study goes on and proposes what it would have proposed.

    ``mark`` stands for all that a trial's loss depends on. A study keeps it, and is gone on with
    under the same mark only; None: unchecked.

    ``on_trial(number, range)`` is a context manager around each trial; it yields a function that
    is called after every epoch with the training so far and whether the trial is pruned now.

    Raises
    ------
    LRRTError
        If the storage cannot be used, or holds a study of this name with another mark.
    """
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=RANDOM_TRIALS, n_warmup_steps=-(-options.trial_epochs // 2)
    )
    try:
        study = optuna.create_study(
            study_name=study_name, storage=options.storage, load_if_exists=True, pruner=pruner
        )
    except Exception as error:  # SQLAlchemy's, a driver's, Optuna's
        raise LRRTError(
            hide_passwords(
                f"storage {options.storage!r} cannot be used ({first_line(error)}): give an Optuna "
                "storage URL such as sqlite:///optuna.db"
            )
        ) from error
    if mark is not None:
        _check_mark(study, mark)
    for left in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if _process_is_gone(left):
            study.tell(left.number, state=TrialState.FAIL)

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr(HOST, platform.node())
        trial.set_user_attr(PID, os.getpid())
        peak = trial.suggest_float("peak_lr", narrowed.min, narrowed.max, log=True)
        lr_range = peak_range(peak, narrowed)
        trial_options = TrainOptions(epochs=options.trial_epochs, schedule=schedule)
        around = on_trial(_finished(study), lr_range) if on_trial else nullcontext(_ignore)
        with around as after_epoch:

            def report(training: Training) -> None:
                trial.report(training.val_loss, len(training.epochs))
                ended = len(training.epochs) == options.trial_epochs
                pruned = not ended and not training.diverged and trial.should_prune()
                after_epoch(training, pruned)
                if pruned:
                    raise _Pruned

            try:
                return train(prepared, state, lr_range, trial_options, on_epoch=report).val_loss
            except _Pruned:
                pass  # said outside, since to the context a pruned trial is no failure
        raise optuna.TrialPruned

    while (done := _finished(study)) < options.trials:
        if done == 0 and not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            study.enqueue_trial({"peak_lr": narrowed.max})
        # A sampler of its own for every trial, so that a study which was interrupted goes on as
        # it would have.
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=options.search_seed + done
        )
        study.optimize(objective, n_trials=1)
    return study


def best_range(study: optuna.Study, narrowed: LRRange) -> LRRange | None:
    """Return the range of the best trial, or None if every trial diverged or was pruned."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    finite = [trial for trial in complete if trial.value is not None and trial.value < float("inf")]
    if not finite:
        return None
    best = min(finite, key=lambda trial: trial.value or 0.0)
    return peak_range(best.params["peak_lr"], narrowed)


def peak_range(peak: float, narrowed: LRRange) -> LRRange:
    """Return the range below ``peak`` with the width of ``narrowed``."""
    return LRRange(peak * narrowed.min / narrowed.max, peak)


class _Pruned(Exception):
    """Ends the training of a trial that fell behind."""


def _ignore(training: Training, pruned: bool) -> None:
    """Follow no trial."""


def _check_mark(study: optuna.Study, mark: str) -> None:
    if not study.get_trials(deepcopy=False) and MARK not in study.user_attrs:
        study.set_user_attr(MARK, mark)
    require(
        study.user_attrs.get(MARK) == mark,
        f"study {study.study_name!r} is of another range test, with other options or other code: "
        "give another study_name, or none for a name of its own",
    )


def _process_is_gone(trial: optuna.trial.FrozenTrial) -> bool:
    """Tell whether the trial's process was of this host and has ended."""
    if trial.user_attrs.get(HOST) != platform.node() or os.name != "posix":
        return False
    try:
        os.kill(trial.user_attrs[PID], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        return False
    return False


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]))
