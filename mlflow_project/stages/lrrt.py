"""The range-test stage: seeded weights, the test on exactly those, what it suggests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow.entities import Run

from lrrt_stage import (
    RULES,
    Confidence,
    LRCurve,
    LRRange,
    LRRTError,
    NoSuggestion,
    RangeTestInterrupted,
    Verdict,
    confidence_all,
    suggest_all,
)
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import CURVE, find_run, read_weights
from mlflow_project.handoff.fingerprints import FINGERPRINT_TAG, fingerprint
from mlflow_project.handoff.publishing import FINAL_WEIGHTS, FINAL_WEIGHTS_TAG, WEIGHTS, publish
from mlflow_project.stages.job_runs import JobRuns, cut_off, finished_children, same_runs
from mlflow_project.stages.shared import run_name, task_words
from mlflow_project.tracking import console
from mlflow_project.tracking.descriptions import describe, followed_by, link
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import (
    log_curve,
    log_dataset,
    log_suggestions,
    name_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.tags import SOURCE_TAG, STAGE_TAG, WEIGHTS_TAG
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.decide.several_tests import Consensus, ConsensusOptions, consensus_all, further_jobs
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult

__all__ = ["lrrt_fingerprint", "range_test_stage"]

WHY = {"robust": ", a tenth of the learning rate at which the loss rises again,"}


def range_test_stage(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    *,
    prepared: PreparedTask | None = None,
) -> str:
    """Run a range test as a run of its own and return its id.

    Of several tests the first, that of ``task`` itself, is the run's; the others are its children.

    Raises
    ------
    NoSuggestion
        If no rule has an answer; the run keeps its weights and its curve.
    """
    with stage_run("lrrt") as run:
        name_run(run, run_name(task))
        prepared = prepared or PreparedTask(task, runtime)
        log_options(run, task, plan, consensus, device=str(prepared.device))
        log_dataset(prepared)
        mark = lrrt_fingerprint(prepared, plan, consensus)
        # At once, so that the tests of an interrupted run are found again.
        mlflow.set_tag(FINGERPRINT_TAG, mark)
        jobs = further_jobs(task, plan, consensus)
        state = _initial_weights(prepared)
        with staged_files(run) as folder:
            # Before the test, so that the weights are kept however it ends.
            mlflow.set_tags(publish(folder, prepared, plan, state))
            try:
                with console.progress("range test") as progress:
                    curve = prepared.range_test(state, plan, progress)
            except RangeTestInterrupted as interrupt:
                if len(interrupt.curve):
                    _keep(run, interrupt.curve, plan, folder)
                raise
            _keep(run, curve, plan, folder)
            answers = suggest_all(curve, plan.smoothing)
            sure = confidence_all(curve, plan.smoothing)
            others = _further_tests(run, prepared, runtime, jobs, consensus.workers, mark)
            agreed = consensus_all([answers, *others], consensus)
            rule = _rule_with_answer(plan.suggestion.rule, agreed)
            several = agreed[rule] if jobs else None
            mlflow.set_tags(
                publish(
                    folder,
                    prepared,
                    plan,
                    state,
                    curve=curve,
                    answers=answers,
                    sure=sure,
                    rule=rule,
                    agreed=several,
                )
            )
        how_sure = log_suggestions(run, curve, answers, sure, rule, several)
        _conclude(run, task, plan, curve, agreed, rule, how_sure)
    return run.info.run_id


def lrrt_fingerprint(
    prepared: PreparedTask, plan: RangeTestPlan, consensus: ConsensusOptions
) -> str:
    """Return what marks range tests that would give the same curve and suggestion."""
    # Nothing depends on how many tests run at a time.
    return fingerprint("lrrt", prepared, plan=plan, consensus=replace(consensus, workers=None))


def _keep(run: Run, curve: LRCurve, plan: RangeTestPlan, folder: Path) -> None:
    """Log a curve before anything else can end the run."""
    log_curve(run, curve, plan.smoothing)
    curve.to_csv(folder / CURVE, plan.smoothing)


def _further_tests(
    run: Run,
    prepared: PreparedTask,
    runtime: Runtime,
    jobs: list[RangeTestJob],
    workers: int | None,
    mark: str,
) -> list[Mapping[str, LRRange | NoSuggestion]]:
    """Run ``jobs`` as child runs and return every rule's answer to each.

    Those that an interrupted run of the same options finished are taken over.
    """
    if not jobs:
        return []
    finished = finished_children(cut_off(same_runs(run, mark, "lrrt")))
    outcomes = JobRuns(run, prepared, runtime, "further tests", workers, finished)(jobs)
    return [
        each.result.answers
        if isinstance(each.result, RangeTestResult)
        else dict.fromkeys(RULES, NoSuggestion(f"{each.job.name} failed: {each.error}"))
        for each in outcomes
    ]


def _initial_weights(prepared: PreparedTask) -> weights.State:
    init = prepared.task.init
    if not init.startswith("run:"):
        return prepared.initial_weights()
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
        return prepared.initial_weights(weights.save(state, Path(folder) / WEIGHTS))


def _rule_with_answer(asked: str, agreed: Mapping[str, Consensus | NoSuggestion]) -> str:
    """Return the rule that was asked for, or the first that has an answer, or the one asked."""
    able = [name for name, answer in agreed.items() if isinstance(answer, Consensus)]
    return asked if asked in able or not able else able[0]


def _conclude(
    run: Run,
    task: Task,
    plan: RangeTestPlan,
    curve: LRCurve,
    agreed: Mapping[str, Consensus | NoSuggestion],
    rule: str,
    how_sure: Confidence,
) -> None:
    """Say what the rules answered; raise NoSuggestion if none did."""
    chosen, asked = agreed[rule], plan.suggestion.rule
    if isinstance(chosen, NoSuggestion):
        raise NoSuggestion(f"no rule has a suggestion; {asked}: {chosen}")
    for name, answer in agreed.items():
        if isinstance(answer, NoSuggestion):
            console.note(f"rule {name} has no suggestion: {answer}")
    if rule != asked:
        console.note(f"rule {rule} is used in place of {asked}")
    if len(chosen.ranges) > 1:
        found = str(chosen).removeprefix(str(chosen.range))
        if how_sure.verdict is Verdict.STILL_FALLING:
            found += f"; {how_sure.verdict}"
        console.note(f"rule {rule} suggests {chosen.range}{found}")
    else:
        found = f": {how_sure}"
        if not how_sure.clear:
            more = _more_tests(task, plan, rule, how_sure.verdict)
            console.note(f"the suggestion is {how_sure}{more}")
    source = mlflow.get_run(run.info.run_id).data.tags.get(SOURCE_TAG)
    began = f", from the weights of {link(source)}" if source else ""
    describe(
        run,
        f"LR range test of {task_words(task)}{began}: {len(curve)} iterations ({curve.stop}).",
        f"Rule `{rule}`{WHY.get(rule, '')} suggests learning rates from **{chosen.range}**{found}.",
        f"The initial weights are the artifact `{WEIGHTS}`: train from them with "
        f"`lrrt-stage train --lrrt-run-id {run.info.run_id}`.",
    )
    if source:
        followed_by(source, run)


def _more_tests(task: Task, plan: RangeTestPlan, rule: str, verdict: Verdict) -> str:
    """Return how to ask for more tests, where that can change the answer."""
    if rule != "robust" or verdict is not Verdict.NOISY:
        return ""
    try:
        further_jobs(task, plan, ConsensusOptions(tests=3, vary="initializations"))
    except LRRTError:  # of given weights there is one initialisation
        return ""
    return "; --tests 3 --vary initializations asks two other initialisations too"
