"""Range test, optional refinement, and training under a parent run with the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mlflow.entities import Run

from lrrt_stage import LRRange
from lrrt_stage.plots.drawing import save_figure
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.handoff.signature import check_signature, sign_run
from mlflow_project.stages.lrrt import lrrt_fingerprint, range_test_stage
from mlflow_project.stages.options import HandoffOptions, MainOptions, TrainRunOptions
from mlflow_project.stages.refined import load_refined, refine_fingerprint
from mlflow_project.stages.shared import run_name, task_words, validation_words
from mlflow_project.stages.train import (
    interrupted_training,
    train_fingerprint,
    train_stage,
)
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.logged_model import require_deployable
from mlflow_project.tracking.params import changed, log_options
from mlflow_project.tracking.record import RunRecord, get_run, unsent_records
from mlflow_project.tracking.runs import find_runs, log_prepared, read_training, stage_run
from mlflow_project.tracking.views import link, set_description
from pipeline import (
    Narrowing,
    PreparedTask,
    RangeTestPlan,
    RefineOptions,
    Runtime,
    ScheduleOptions,
    Task,
    TrainOptions,
)
from pipeline.decide.options import ConsensusOptions
from pipeline.training.plots import summary_figure

__all__ = ["main_stage"]


def main_stage(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    narrowing: Narrowing,
    refine_options: RefineOptions,
    train_options: TrainOptions,
    options: MainOptions,
) -> str:
    """Run all steps and return the parent run's id.

    If a step fails, the steps before it are kept, and found again with ``reuse``.
    """
    _note_unused(refine_options, options)
    if options.refine:
        # Optuna and its figures take a second to import.
        from mlflow_project.stages.refine import refine_stage
        from pipeline.training.refinement import direction_of

        trial_epochs = refine_options.epochs_per_trial(train_options.epochs)
        refine_options = replace(refine_options, trial_epochs=trial_epochs)

    def step(name: str, step_fingerprint: str, run_it: Callable[[], str]) -> str:
        # A model is registered by the training that logs it: an earlier run did not.
        registers = name == "train" and options.register is not None
        reuse = options.reuse and not registers
        same: list[Run] = []
        if reuse:
            same = find_runs({tags.FINGERPRINT: step_fingerprint}, finished=True)
        if same:
            check_signature(same[0])
            run_id = str(same[0].info.run_id)
            console.note(f"{name}: reusing run {run_id}")
        else:
            # Before the first step, so that none is lost by what a later one finds.
            prepared.check_validation()
            try:
                run_id = run_it()
            except KeyboardInterrupt as interrupt:
                kept = str(interrupt).partition(";")[0] or "stopped"
                first = "lrrt-stage sync, and then " if unsent_records() else ""
                raise KeyboardInterrupt(
                    f"in {name} ({kept}); {first}the same command with --reuse true goes on"
                ) from None
        parent.set_tags({tags.STEPS[name]: run_id})
        return run_id

    with stage_run("main", run_name(task), keeps_children=True) as parent:
        log_options(task, plan, consensus, narrowing, refine_options, train_options, options)
        prepared = PreparedTask(task, runtime)
        log_prepared(prepared)
        # What the later steps need is checked before the first one runs.
        if options.refine:
            direction_of(prepared, refine_options.metric)
        require_deployable(prepared, options.register)
        parent.begin_work()
        lrrt_id = step(
            "lrrt",
            lrrt_fingerprint(prepared, plan, consensus),
            lambda: range_test_stage(task, runtime, plan, consensus, prepared=prepared),
        )
        handoff = load_handoff(lrrt_id)
        lr_range = narrowed = narrowing(handoff.range)
        if train_options.attempts > 1:
            handoff.guard(narrowed)  # before the refinement, whose trials would be lost
        source = HandoffOptions(lrrt_run_id=lrrt_id)
        schedule = ScheduleOptions(train_options.schedule, train_options.schedule_args)
        refine_id = None
        if options.refine:
            refine_id = step(
                "refine",
                refine_fingerprint(prepared, handoff, narrowed, refine_options, schedule),
                lambda: refine_stage(
                    source, runtime, narrowing, refine_options, schedule, prepared=prepared
                ),
            )
            _, lr_range = load_refined(refine_id, handoff)
        same = partial(train_fingerprint, prepared, handoff, lr_range, train_options)
        resume = interrupted_training(same(to_the_bit=False)) if options.reuse else None
        if resume is not None:
            console.note(f"train: continuing run {resume}")
        run_options = TrainRunOptions(refine_id, options.register, resume)
        train_id = step(
            "train",
            same(),
            lambda: train_stage(
                source, runtime, narrowing, train_options, run_options, prepared=prepared
            ),
        )
        _copy_results(parent, handoff, refine_id, train_id)
        sign_run()
    return parent.run_id


def _note_unused(refine_options: RefineOptions, options: MainOptions) -> None:
    """Say that options of a search have no effect where there is none."""
    given = ", ".join(f"{name}={value}" for name, value in changed(refine_options).items())
    if given and not options.refine:
        console.note(f"without refine=true there is no search: {given} has no effect")


def _copy_results(
    run: RunRecord,
    handoff: Handoff,
    refine_id: str | None,
    train_id: str,
) -> None:
    """Show the result of all steps on the parent: metrics, a figure, and a description."""
    # A metric of several steps is that of the last one.
    logged: dict[str, float] = {}
    for run_id in filter(None, (handoff.run_id, refine_id, train_id)):
        logged |= get_run(run_id).data.metrics
    metrics = {
        name: value
        for name, value in logged.items()
        if name.startswith(("val_", "best_"))
        or name == "attempts"
        or name.endswith(("_lr_min", "_lr_max", "_decades"))
    }
    run.log_metrics(metrics)
    trained = LRRange(metrics["trained_lr_min"], metrics["trained_lr_max"])
    figure = summary_figure(handoff.reading, trained, read_training(train_id))
    save_figure(figure, run.files / "summary.png")
    verdict = handoff.reading.verdict
    run.set_tags({tags.WEIGHTS: handoff.weights_sha256, tags.VERDICT: verdict})
    registered = ""
    if model := get_run(train_id).data.tags.get(tags.MODEL):
        run.set_tags({tags.MODEL: model})
        name, version = model.removeprefix("models:/").rsplit("/", 1)
        page = f"#/models/{name}/versions/{version}"
        registered = f" Its model is [{name} version {version}]({page})."
    lost = round(metrics["attempts"]) - 1
    rates = f"learning rates from {trained}"
    if lost:
        attempts = "one attempt" if lost == 1 else f"{lost} attempts"
        rates += f", after {attempts} with higher ones"
    elif refine_id:
        rates += f" that {link(refine_id)} found in it"
    elif trained == handoff.range:
        rates = "these learning rates"
    else:
        rates += " inside it"
    set_description(
        f"Range test {link(handoff.run_id)} of {task_words(handoff.recipe)} suggests learning "
        f"rates from **{handoff.range}** (rule `{handoff.rule}`: {verdict}).",
        f"Training {link(train_id)} started from the initial weights of the range test, with "
        f"{rates}.",
        f"{validation_words(metrics)}{registered}",
    )
