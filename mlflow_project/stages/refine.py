"""The refinement stage: a short Optuna search inside the suggested range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from lrrt_stage import LRRange, LRRTError, shows_gain
from lrrt_stage.files import write_text
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import hide_passwords
from mlflow_project.handoff.artifacts import (
    CONTRACT_VERSION,
    write_json,
)
from mlflow_project.handoff.signature import sign_run
from mlflow_project.stages.options import HandoffOptions
from mlflow_project.stages.refined import REFINED, REFINED_TAG, refine_fingerprint
from mlflow_project.stages.shared import open_handoff, task_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.connection import default_storage
from mlflow_project.tracking.params import log_options, log_params
from mlflow_project.tracking.runs import log_range, log_training, stage_run
from mlflow_project.tracking.views import set_description
from pipeline import (
    Narrowing,
    PreparedTask,
    RefineOptions,
    Runtime,
    ScheduleOptions,
    Training,
    best_range,
    refine,
)
from pipeline.training.refinement import AfterEpoch
from pipeline.training.search_plots import search_figures

__all__ = ["refine_stage"]


def refine_stage(
    handoff_options: HandoffOptions,
    runtime: Runtime,
    narrowing: Narrowing,
    options: RefineOptions,
    schedule: ScheduleOptions,
    *,
    changes: dict[str, Any] | None = None,
    prepared: PreparedTask | None = None,
) -> str:
    """Search the peak LR as a run of its own with a child run per trial; return its id.

    ``schedule`` is that of the training which follows, and is used by the trials.
    """
    with stage_run("refine") as run:
        handoff, prepared, narrowed = open_handoff(
            handoff_options, runtime, narrowing, changes, prepared
        )
        options = replace(options, trial_epochs=options.epochs_per_trial())
        # Neither the number of trials nor the storage changes what a trial's loss depends on.
        same = replace(options, trials=1, storage=None, study_name=None)
        trial_fingerprint = refine_fingerprint(prepared, handoff, narrowed, same, schedule)
        name = options.study_name or f"lrrt-{trial_fingerprint[:16]}"
        run_fingerprint = refine_fingerprint(prepared, handoff, narrowed, options, schedule)
        run.set_tags({tags.FINGERPRINT: run_fingerprint})
        log_options(
            prepared.task,
            narrowing,
            replace(options, study_name=name),
            schedule,
            rule=handoff.rule,
        )
        # The losses of a different task, or of a test without a fall, are no measure.
        is_watched = tags.MISMATCH not in run.tags and shows_gain(handoff.curve)
        storage = options.storage or default_storage()
        folder = run.begin_work()
        console.note(f"the search is Optuna study {name} in {hide_passwords(storage)}")
        with console.progress("refinement") as progress, _errors_only():
            optuna_study = refine(
                prepared,
                handoff.weights,
                narrowed,
                replace(options, storage=storage),
                schedule,
                study_name=name,
                fingerprint=trial_fingerprint,
                curve=handoff.curve if is_watched else None,
                on_trial=partial(_trial_run, progress, options.trials),
            )
        refined = best_range(optuna_study, narrowed)
        _write_search(folder, optuna_study)
        if refined is not None:
            content = {
                "contract_version": CONTRACT_VERSION,
                "lrrt_run_id": handoff.run_id,
                "study_name": name,
                "best_trial": optuna_study.best_trial.number,
                "range": refined,
            }
            run.set_tags({REFINED_TAG: write_json(folder / REFINED, content)})
        if refined is None:
            raise LRRTError(
                f"no trial of Optuna study {name!r} ended with a finite "
                f"{options.metric or 'validation loss'}: lower the maximum with "
                "narrowing_fraction, raise trials, or check the validation"
            )
        log_range("refined", refined)
        metric = f"val_{options.metric or 'loss'}"
        run.log_metrics({metric: optuna_study.best_value})
        set_description(
            f"Search for the peak learning rate of {task_words(prepared.task)} in {narrowed}, "
            f"{handoff.place(narrowed)}.",
            f"{len(optuna_study.trials)} trainings of {options.trial_epochs} epochs started from "
            "the initial weights of the range test; those that this run made are its child runs.",
            f"The best range is **{refined}**, with a {metric.replace('val_', 'validation ')} of "
            f"{optuna_study.best_value:.4g}.",
        )
        sign_run()
    return run.run_id


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let Optuna log errors alone: as a warning it prints the traceback of what ends a trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _trial_run(
    progress: Callable[[int, int], None], trials: int, number: int, lr_range: LRRange
) -> Iterator[AfterEpoch]:
    """Open a child run for a trial, and log the trial when it ends."""
    last: tuple[Training, bool] | None = None

    def after_epoch(training: Training, pruned: bool) -> None:
        nonlocal last
        last = training, pruned

    with stage_run("trial", f"{number}: peak {lr_range.max:.3g}") as run:
        log_params({"trial": number})
        log_range("trained", lr_range)
        try:
            yield after_epoch
        finally:
            if last is not None:
                training, pruned = last
                log_training(training)
                state = "pruned" if pruned else "diverged" if training.reason else "complete"
                run.set_tags({"lrrt.trial_state": state})
    progress(number + 1, trials)


def _write_search(folder: Path, optuna_study: optuna.Study) -> None:
    # Without the user attributes, which concern only the Optuna study.
    columns = ("number", "value", "datetime_start", "datetime_complete", "duration", "params")
    table = optuna_study.trials_dataframe((*columns, "state"))
    write_text(folder / "trials.csv", table.to_csv(index=False))
    for name, figure in search_figures(optuna_study).items():
        save_figure(figure, folder / name, dpi=110, bbox_inches="tight")
