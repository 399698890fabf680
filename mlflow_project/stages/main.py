"""The chain: range test, refinement, training, under one parent run that shows the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run

from lrrt_stage import LRRange
from lrrt_stage.settings import Options, setting
from mlflow_project.handoff.fingerprints import find_same
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.stages.lrrt import lrrt_fingerprint, range_test_stage
from mlflow_project.stages.refine import load_refined, refine_fingerprint, refine_stage
from mlflow_project.stages.shared import HandoffOptions, run_name, task_words
from mlflow_project.stages.train import TrainRunOptions, train_fingerprint, train_stage
from mlflow_project.tracking import console
from mlflow_project.tracking.descriptions import describe, link, link_to_model, registered_model
from mlflow_project.tracking.params import log_options, log_params
from mlflow_project.tracking.runs import (
    get_run,
    log_dataset,
    log_scalars,
    name_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.tags import STEP_TAGS, VERDICT_TAG, WEIGHTS_TAG
from pipeline import (
    Narrowing,
    PreparedTask,
    RangeTestPlan,
    RefineOptions,
    Runtime,
    Task,
    TrainOptions,
)
from pipeline.decide.several_tests import ConsensusOptions
from pipeline.training.plots import summary_figure

__all__ = ["MainOptions", "main_stage"]

SHOWN = (
    ("suggested_lr_min", "suggested_lr_max", "suggestion_decades"),
    ("refined_lr_min", "refined_lr_max"),
    (
        *("narrowed_lr_min", "narrowed_lr_max", "trained_lr_min", "trained_lr_max"),
        *("val_loss", "val_accuracy"),
    ),
)
"""Metrics of the range test, the refinement and the training that the parent run shows."""


@dataclass(frozen=True)
class MainOptions(Options):
    """Which steps are run."""

    refine: bool = setting(True, "Refine the narrowed range before training.")
    reuse: bool = setting(
        False, "Reuse finished steps of the experiment with the same parameters and code."
    )
    register: str | None = setting(None, "Name under which the model is registered; none: not.")


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
    """Run the whole chain and return the parent run's id.

    Raises
    ------
    LRRTError
        Where a step raises it; the steps before it are kept, and found again with ``reuse``.
    """

    def step(name: str, mark: str, run_it: Callable[[], str]) -> str:
        # A training that is to be registered has to run: the one before was not.
        registers = name == "train" and options.register is not None
        same = find_same(mark) if options.reuse and not registers else None
        if same:
            console.note(f"{name}: reusing run {same}")
        try:
            run_id = same or run_it()
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(
                f"in {name} ({interrupt or 'stopped'}); the same command with --reuse true takes "
                "over the steps that are finished"
            ) from None
        mlflow.set_tag(STEP_TAGS[name], run_id)
        return run_id

    with stage_run("main") as parent:
        name_run(parent, run_name(task))
        # At once, so that a chain that fails has them too.
        log_options(
            parent, task, plan, consensus, narrowing, refine_options, train_options, options
        )
        prepared = PreparedTask(task, runtime)
        log_params(parent, {"device": str(prepared.device)})
        log_dataset(prepared)
        lrrt_id = step(
            "lrrt",
            lrrt_fingerprint(prepared, plan, consensus),
            lambda: range_test_stage(task, runtime, plan, consensus, prepared=prepared),
        )
        handoff = load_handoff(lrrt_id)
        lr_range = narrowed = narrowing(handoff.range)
        source = HandoffOptions(lrrt_run_id=lrrt_id)
        schedule = train_options.schedule
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
        run_options = TrainRunOptions(refine_run_id=refine_id, register=options.register)
        train_id = step(
            "train",
            train_fingerprint(prepared, handoff, lr_range, train_options),
            lambda: train_stage(
                source, runtime, narrowing, train_options, run_options, prepared=prepared
            ),
        )
        _conclude(parent, handoff, lr_range, lrrt_id, refine_id, train_id)
    return parent.info.run_id


def _conclude(
    parent: Run,
    handoff: Handoff,
    lr_range: LRRange,
    lrrt_id: str,
    refine_id: str | None,
    train_id: str,
) -> None:
    """Show the result of all steps on the parent: metrics, one picture, a description."""
    metrics: dict[str, float] = {}
    verdict = get_run(lrrt_id).data.tags[VERDICT_TAG]
    for run_id, names in zip((lrrt_id, refine_id, train_id), SHOWN, strict=True):
        if run_id is not None:
            logged = get_run(run_id).data.metrics
            metrics |= {name: logged[name] for name in names}
    log_scalars(parent, metrics)
    history = {
        name: mlflow.MlflowClient().get_metric_history(train_id, name)
        for name in ("lr", "train_loss", "val_loss")
    }
    values = {name: [each.value for each in series] for name, series in history.items()}
    with staged_files(parent) as folder:
        summary_figure(
            handoff.curve,
            handoff.rule,
            handoff.plan.smoothing,
            lr_range,
            values["lr"],
            values["train_loss"],
            [each.step for each in history["val_loss"]],
            values["val_loss"],
            handoff.range,
        ).savefig(folder / "summary.png")
    mlflow.set_tags({WEIGHTS_TAG: handoff.weights_sha256, VERDICT_TAG: verdict})
    model = registered_model(train_id)
    registered = f", and its model is {link_to_model(model)}" if model else ""
    refined = f" that {link(refine_id)} found in it" if refine_id else " inside it"
    describe(
        parent,
        f"Range test {link(lrrt_id)} of {task_words(handoff.task)} suggests learning rates from "
        f"**{handoff.range}** (rule `{handoff.rule}`: {verdict}).",
        f"Training {link(train_id)} began with the very weights of the range test, and went "
        f"through the range {lr_range}{refined}.",
        f"It ended with a validation accuracy of **{metrics['val_accuracy']:.4f}**{registered}.",
    )
