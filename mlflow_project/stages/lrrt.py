"""The range-test stage: seeded weights, the test on exactly those, what it suggests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import mlflow
from mlflow.entities import Run

from lrrt_stage import (
    Confidence,
    LRCurve,
    LRRange,
    NoSuggestion,
    RangeTestInterrupted,
    Smoothing,
    confidence,
    suggest_all,
    weights,
)
from lrrt_stage.settings import require
from mlflow_project import display, tracking
from mlflow_project.artifacts import find_run, read_weights
from mlflow_project.handoff import (
    FINAL_WEIGHTS,
    FINAL_WEIGHTS_TAG,
    SOURCE_TAG,
    WEIGHTS,
    WEIGHTS_TAG,
    publish,
)
from mlflow_project.reuse import FINGERPRINT_TAG, fingerprint
from mlflow_project.stages.opening import short_name
from mlflow_project.tracking import STAGE_TAG, VERDICT_TAG, stage_run, staged_files
from pipeline import RangeTestPlan, Runtime, Task, Workbench

__all__ = ["log_curve", "log_suggestions", "lrrt", "lrrt_fingerprint"]


def lrrt(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    *,
    bench: Workbench | None = None,
) -> str:
    """Run a range test as a run of its own and return its id.

    Raises
    ------
    NoSuggestion
        If no rule has an answer; the run keeps its weights and its curve.
    """
    with stage_run("lrrt") as run:
        tracking.name_run(run, f"{short_name(task)} seed {task.seed}")
        bench = bench or Workbench(task, runtime)
        tracking.log_params(run, {**asdict(task), "device": str(bench.device), **plan.flat()})
        tracking.log_dataset(bench)
        state = _initial_weights(bench)
        with staged_files(run) as folder:
            # Before the test, so that the weights are kept however it ends.
            mlflow.set_tags(publish(folder, bench, state))
            try:
                with display.progress("range test") as progress:
                    curve = bench.range_test(state, plan, progress)
            except RangeTestInterrupted as interrupt:
                if len(interrupt.curve):
                    log_curve(run, interrupt.curve, plan.smoothing)
                    interrupt.curve.to_csv(folder / "curve.csv", plan.smoothing)
                raise
            answers = suggest_all(curve, plan.smoothing)
            rule = _rule_with_answer(plan.suggestion.rule, answers)
            mlflow.set_tags(
                publish(
                    folder,
                    bench,
                    state,
                    curve=curve,
                    smoothing=plan.smoothing,
                    answers=answers,
                    rule=rule,
                )
            )
        log_curve(run, curve, plan.smoothing)
        _conclude(run, curve, plan.smoothing, answers, plan.suggestion.rule, rule)
        mlflow.set_tag(FINGERPRINT_TAG, lrrt_fingerprint(bench, plan))
    return run.info.run_id


def lrrt_fingerprint(bench: Workbench, plan: RangeTestPlan) -> str:
    """Return what marks range tests that would give the same curve and suggestion."""
    return fingerprint("lrrt", bench, plan=plan)


def _initial_weights(bench: Workbench) -> weights.State:
    init = bench.task.init
    if not init.startswith("run:"):
        return bench.initial_weights()
    run_id = init.removeprefix("run:")
    require(
        run_id != "latest",
        "init run:latest is another run tomorrow, and the task would be another: give the run's id",
    )
    run = find_run(run_id, "train", "lrrt")
    mlflow.set_tag(SOURCE_TAG, run_id)
    # A training run's weights are the trained ones, a range test's the initial ones.
    if run.data.tags[STAGE_TAG] == "train":
        state = read_weights(run, FINAL_WEIGHTS, FINAL_WEIGHTS_TAG)
    else:
        state = read_weights(run, WEIGHTS, WEIGHTS_TAG)
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        return bench.initial_weights(weights.save(state, Path(folder) / WEIGHTS))


def _rule_with_answer(asked: str, answers: dict[str, LRRange | NoSuggestion]) -> str:
    """Return the rule that was asked for, or the first that has an answer, or the one asked."""
    able = [name for name, answer in answers.items() if isinstance(answer, LRRange)]
    return asked if asked in able or not able else able[0]


def _conclude(
    run: Run,
    curve: LRCurve,
    smoothing: Smoothing,
    answers: dict[str, LRRange | NoSuggestion],
    asked: str,
    rule: str,
) -> None:
    """Log and say what the rules answered; raise NoSuggestion if none did."""
    how_sure = log_suggestions(run, curve, answers, rule, smoothing)
    chosen = answers[rule]
    if isinstance(chosen, NoSuggestion):
        raise NoSuggestion(f"no rule has a suggestion; {asked}: {chosen}")
    for name, answer in answers.items():
        if isinstance(answer, NoSuggestion):
            display.note(f"rule {name} has no suggestion: {answer}")
    if rule != asked:
        display.note(f"rule {rule} is used in place of {asked}")
    if not how_sure.clear:
        display.note(f"the suggestion is {how_sure}")
    mlflow.set_tag(
        "mlflow.note.content",
        f"LR range test over {len(curve)} iterations ({curve.stop}). "
        f"Rule `{rule}` suggests learning rates from {chosen}: {how_sure}. "
        f"The initial weights are the artifact `{WEIGHTS}`; train with "
        f"`mlflow run . -e train -P lrrt_run_id={run.info.run_id}`.",
    )


def log_suggestions(
    run: Run,
    curve: LRCurve,
    answers: Mapping[str, LRRange | NoSuggestion],
    rule: str,
    smoothing: Smoothing,
) -> Confidence:
    """Log what every rule answered, the range of ``rule``, and how far it can be trusted."""
    chosen, how_sure = answers[rule], confidence(curve, rule, smoothing)
    found = {name: answer for name, answer in answers.items() if isinstance(answer, LRRange)}
    scalars = {f"suggestion.{name}": answer.max for name, answer in found.items()}
    if curve.epochs is not None:
        scalars["range_test_epochs"] = curve.epochs
    if isinstance(chosen, LRRange):
        scalars |= {"suggested_lr_min": chosen.min, "suggested_lr_max": chosen.max}
        scalars |= {"suggestion_decades": how_sure.decades}
    tracking.log_scalars(run, scalars)
    mlflow.set_tags(
        {"lrrt.stop": curve.stop, "lrrt.rule": rule, VERDICT_TAG: str(how_sure.verdict)}
    )
    return how_sure


def log_curve(run: Run, curve: LRCurve, smoothing: Smoothing) -> None:
    """Log learning rates and losses, one value per iteration."""
    frame = curve.to_frame(smoothing).rename(columns={"loss": "train_loss"})
    for name in frame.columns.drop("iteration"):
        known = frame[name].notna() if name == "full_val_loss" else slice(None)
        tracking.log_series(run, {name: frame.loc[known, name]}, frame.loc[known, "iteration"])
