"""The refinement stage: a short Optuna search inside the suggested range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlflow
import optuna
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.trial import TrialState

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
from mlflow_project.tracking.outbox import UNSENT, run_of_uuid
from mlflow_project.tracking.params import log_options, log_params
from mlflow_project.tracking.record import RunRecord
from mlflow_project.tracking.runs import log_range, log_training, stage_run
from mlflow_project.tracking.store import PATIENCE, reason_of
from mlflow_project.tracking.views import link, set_description
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
from pipeline.training.refinement import AfterEpoch, best_trial
from pipeline.training.search import Search
from pipeline.training.search_plots import search_figures

__all__ = ["refine_stage"]

SEARCH_RUN = "lrrt.run_id"
"""User attribute of the Optuna study: the run that the runs of all workers are children of."""
BETWEEN_SECONDS, LOOK_SECONDS = 10.0, 0.5
"""How long a worker may have no trial, as its last run ends and before its first one, and how often
another worker that comes looks for one."""


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
        # Neither the number of trials nor the storage changes what a trial's loss depends on, and
        # workers may have different numbers of cores.
        same = replace(options, trials=1, storage=None, study_name=None)
        trial_fingerprint = refine_fingerprint(
            prepared, handoff, narrowed, same, schedule, to_the_bit=False
        )
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
        with console.progress("refinement") as progress, _errors_only():
            worker = _Worker(run, progress, hide_passwords(storage), options.trials)
            optuna_study = refine(
                prepared,
                handoff.weights,
                narrowed,
                replace(options, storage=storage),
                schedule,
                study_name=name,
                fingerprint=trial_fingerprint,
                curve=handoff.curve if is_watched else None,
                on_trial=worker.trial_run,
                on_open=worker.join,
                on_wait=worker.wait,
                on_note=console.note,
            )
        best = best_trial(optuna_study)
        refined = best_range(optuna_study, narrowed)
        _write_search(folder, optuna_study)
        if best is not None and refined is not None:
            content = {
                "contract_version": CONTRACT_VERSION,
                "lrrt_run_id": handoff.run_id,
                "study_name": name,
                "best_trial": best.number,
                "range": refined,
            }
            run.set_tags({REFINED_TAG: write_json(folder / REFINED, content)})
        if best is None or refined is None:
            raise LRRTError(
                f"no trial of Optuna study {name!r} ended with a finite "
                f"{options.metric or 'validation loss'}: lower the maximum with "
                "narrowing_fraction, raise trials, or check the validation"
            )
        log_range("refined", refined)
        metric = f"val_{options.metric or 'loss'}"
        run.log_metrics({metric: cast(float, best.value)})
        set_description(
            f"Search for the peak learning rate of {task_words(prepared.task)} in {narrowed}, "
            f"{handoff.place(narrowed)}.",
            f"{_ended(optuna_study)} trainings of {options.trial_epochs} epochs started from the "
            f"initial weights of the range test; {worker.children()}.",
            f"The best range is **{refined}**, with a {metric.replace('val_', 'validation ')} of "
            f"{best.value:.4g}.",
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


class _Worker:
    """A process of a search: which run its trials are children of, and what a person sees."""

    def __init__(
        self, run: RunRecord, progress: Callable[[int, int], None], storage: str, trials: int
    ) -> None:
        self.run, self.progress, self.storage, self.trials = run, progress, storage, trials
        self.search: Search | None = None
        self.parent: str | None = None
        """Run of the search, where that is one of a different worker."""
        self._waits_for = 0

    def join(self, search: Search) -> None:
        """Say whether the search is new or joined, and find its run."""
        self.search, name = search, search.optuna_study.study_name
        if search.is_new:
            console.note(f"opened search {name} in {self.storage}")
        else:
            finished, running, _ = search.places(self.trials)
            more = f", and {running} more of other workers run" if running else ""
            console.note(
                f"joined search {name} in {self.storage}: {finished} of {self.trials} "
                f"trials are there{more}"
            )
        self.parent = _search_run(self.run, search, self.trials)
        if self.parent is not None and MLFLOW_PARENT_RUN_ID not in self.run.tags:
            self.run.set_tags({MLFLOW_PARENT_RUN_ID: self.parent})

    def wait(self, finished: int, running: int) -> None:
        """Show that there are only trials of others to wait for."""
        self.progress(finished, self.trials)
        if running and running != self._waits_for:
            console.note(
                f"waiting for {running} {'trial' if running == 1 else 'trials'} of other workers: "
                f"{finished} of {self.trials} are there"
            )
            self._waits_for = running

    def children(self) -> str:
        """Return where the runs of the trials are, for a description."""
        if self.parent is None:
            return "those that this run and workers which joined it made are its child runs"
        return f"those of all workers are child runs of {link(self.parent)}"

    @contextmanager
    def trial_run(self, number: int, lr_range: LRRange) -> Iterator[AfterEpoch]:
        """Open a child run for a trial, and log the trial when it ends."""
        last: tuple[Training, bool] | None = None

        def after_epoch(training: Training, pruned: bool) -> None:
            nonlocal last
            last = training, pruned

        name = f"{number}: peak {lr_range.max:.3g}"
        with stage_run("trial", name, parent_run_id=self.parent) as run:
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
        if self.search is not None:
            # That of this trial is told to Optuna a moment later.
            self.progress(self.search.places(self.trials).finished + 1, self.trials)


def _search_run(run: RunRecord, search: Search, trials: int) -> str | None:
    """Return the run of the search, if that is one of a different worker.

    It is the run of the worker that opened the search, or of the first one that went on with it
    when nobody was at work any more.
    """
    own = run.run_id
    holder = search.claim(SEARCH_RUN, own)
    while holder != own:
        others = search.places(trials).running
        found, reason = _look_up(holder, run)
        if found is not None:
            # A run whose worker was killed elsewhere is RUNNING for ever.
            is_open = others or (found.info.status == "RUNNING" and _goes_on(search, trials))
            if is_open and found.info.lifecycle_stage == LifecycleStage.ACTIVE:
                return str(found.info.run_id)
        elif others:
            console.note(f"the trials are child runs of this worker's own run: {reason}")
            return None
        holder = search.claim(SEARCH_RUN, own, instead_of=holder)
    return None


def _goes_on(search: Search, trials: int) -> bool:
    """Return whether somebody is at work, who may be between two trials for a moment."""
    deadline = time.monotonic() + BETWEEN_SECONDS
    while not (places := search.places(trials)).running and places.finished < trials:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _look_up(run_id: str, run: RunRecord) -> tuple[Run | None, str]:
    """Return a run of this experiment, or why there is none."""
    experiment = run.run.info.experiment_id
    try:
        if run_id.startswith(UNSENT):
            uuid = run_id.removeprefix(UNSENT)
            found = PATIENCE.attempt(lambda: run_of_uuid(uuid, experiment))
        else:
            found = PATIENCE.attempt(lambda: mlflow.MlflowClient().get_run(run_id))
    except MlflowException:
        found = None
    except Exception as error:
        return None, f"the store does not answer ({reason_of(error)})"
    if found is None:
        return None, f"run {run_id} of the search is not in this tracking store"
    if found.info.experiment_id != experiment:
        return None, f"run {run_id} of the search is in a different experiment"
    return found, ""


def _ended(optuna_study: optuna.Study) -> int:
    return sum(
        each.state.is_finished() and each.state != TrialState.FAIL for each in optuna_study.trials
    )


def _write_search(folder: Path, optuna_study: optuna.Study) -> None:
    # Without the user attributes, which concern only the Optuna study.
    columns = ("number", "value", "datetime_start", "datetime_complete", "duration", "params")
    table = optuna_study.trials_dataframe((*columns, "state"))
    write_text(folder / "trials.csv", table.to_csv(index=False))
    for name, figure in search_figures(optuna_study).items():
        save_figure(figure, folder / name, dpi=110, bbox_inches="tight")
