"""The range-test stage: seeded weights, the test on exactly those, and what is read from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow.entities import Run

from lrrt_stage import (
    RULES,
    Consensus,
    LRCurve,
    LRRTError,
    NoSuggestion,
    RangeTestInterrupted,
    Reading,
    Verdict,
)
from lrrt_stage.rules.uncertainty import ramp_movement
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import find_run, read_weights
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.publishing import (
    CURVE,
    FINAL_WEIGHTS,
    FINAL_WEIGHTS_TAG,
    WEIGHTS,
    publish_inputs,
    publish_reading,
)
from mlflow_project.stages.job_runs import JobRuns, finished_jobs, same_runs
from mlflow_project.stages.shared import run_name, task_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import (
    log_curve,
    log_dataset,
    log_reading,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.views import followers_page, link, set_description
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.decide.several_tests import VARIED, ConsensusOptions, combined_reading, further_jobs
from pipeline.jobs.jobs import FailedJob, JobResult, RangeTestResult

__all__ = ["lrrt_fingerprint", "range_test_stage"]


def range_test_stage(
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    *,
    prepared: PreparedTask | None = None,
) -> str:
    """Run a range test as a run of its own and return its id.

    Of several tests the first, that of ``task`` itself, is this run; the others are its children.
    If no rule has a suggestion, the run keeps its weights and its curve.
    """
    with stage_run("lrrt", run_name(task)) as run:
        prepared = prepared or PreparedTask(task, runtime)
        log_options(run, task, plan, consensus, device=str(prepared.device))
        log_dataset(prepared)
        # Set before the test, so that the tests of an interrupted run are found again.
        test_fingerprint = lrrt_fingerprint(prepared, plan, consensus)
        mlflow.set_tag(tags.FINGERPRINT, test_fingerprint)
        jobs = further_jobs(task, plan, consensus)
        state = _initial_weights(prepared)
        with staged_files(run) as folder:
            # Published before the test, so that the weights are kept however it ends.
            mlflow.set_tags(publish_inputs(folder, task, prepared, plan, state))
            first = plan.read(_measure(run, prepared, state, plan, folder))
            others = []
            if jobs:
                earlier = same_runs(test_fingerprint, "lrrt", "FAILED", "KILLED")
                finished = finished_jobs(earlier)
                tests = JobRuns(run, prepared, "tests", consensus.workers, finished)
                others = [_reading(result) for result in tests(jobs)]
            reading = combined_reading([first, *others], consensus)
            mlflow.set_tags(publish_reading(folder, reading))
        log_reading(reading)
        _describe_suggestion(run, task, plan, consensus, reading)
    return run.info.run_id


def lrrt_fingerprint(
    prepared: PreparedTask, plan: RangeTestPlan, consensus: ConsensusOptions
) -> str:
    """Return the fingerprint of range tests that would give the same curve and suggestion."""
    # Nothing depends on how many tests run at a time, or, of a single test, on the others.
    several = replace(consensus, workers=None) if consensus.tests > 1 else ConsensusOptions()
    return fingerprint("lrrt", prepared, plan=plan, consensus=several)


def _initial_weights(prepared: PreparedTask) -> weights.State:
    init = prepared.task.initial
    if not init.startswith("run:"):
        return prepared.initial_weights()
    run_id = init.removeprefix("run:")
    require(
        run_id != "latest",
        "init='run:latest' names a different run after every training: give the id of the run",
    )
    run = find_run(run_id, "train", "lrrt")
    mlflow.set_tag(tags.SOURCE, run_id)
    trained = run.data.tags[tags.STAGE] == "train"
    name, tag = (FINAL_WEIGHTS, FINAL_WEIGHTS_TAG) if trained else (WEIGHTS, tags.WEIGHTS)
    return prepared.initial_weights(read_weights(run, name, tag))


def _measure(
    run: Run, prepared: PreparedTask, state: weights.State, plan: RangeTestPlan, folder: Path
) -> LRCurve:
    """Return the curve of the range test; it is kept at once, also where Ctrl-C ends the test."""

    def keep(curve: LRCurve) -> None:
        log_curve(run, curve, plan.smoothing)
        curve.to_csv(folder / CURVE, plan.smoothing)

    try:
        with console.progress("range test") as progress:
            curve = prepared.range_test(state, plan, progress)
    except RangeTestInterrupted as interrupt:
        if len(interrupt.curve):
            keep(interrupt.curve)
        raise
    keep(curve)
    return curve


def _reading(result: JobResult) -> Reading | NoSuggestion:
    if isinstance(result, RangeTestResult):
        return result.reading
    assert isinstance(result, FailedJob)
    return NoSuggestion(f"{result.job.name} failed: {result.reason}")


def _describe_suggestion(
    run: Run,
    task: Task,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    reading: Reading,
) -> None:
    """Print and describe the suggestion; raise NoSuggestion if there is none."""
    rule, asked, final = reading.rule, plan.suggestion.rule, reading.final
    verdict = final.confidence.verdict
    if final.range is None:
        raise NoSuggestion(f"no rule has a suggestion; {asked}: {final.reason}", verdict)
    if rule != asked:
        reason = reading.suggestions[asked].reason or "too few of the tests have one"
        console.note(f"rule {asked} has no suggestion: {reason}; rule {rule} is used instead")
    if isinstance(reading.consensus, Consensus):
        found = f"{reading.consensus}; the tests differ in {VARIED[consensus.vary]}"
        if verdict is Verdict.STILL_FALLING:
            found += f"; {verdict}"
        console.note(f"rule {rule} suggests {found}")
    else:
        found = f"{final.range}: {final.confidence}"
        if not final.confidence.clear:
            console.note(f"the suggestion is {final.confidence}{_more_tests(task, plan, reading)}")
    if moved := ramp_movement(reading.curve, rule):
        console.note(
            f"this ramp is known to move the maximum of rule {rule} by about {moved:.2g} decades, "
            "compared with 100 iterations from 1e-7"
        )
    source = mlflow.get_run(run.info.run_id).data.tags.get(tags.SOURCE)
    start = f", from the weights of {link(source)}" if source else ""
    curve = reading.curve
    set_description(
        run,
        f"LR range test of {task_words(task)}{start}: {len(curve)} iterations ({curve.stop}).",
        f"Rule `{rule}` suggests learning rates from **{final.range}**"
        f"{found.removeprefix(str(final.range))}. {RULES[rule].explanation}",
        f"The initial weights are the artifact `{WEIGHTS}`: train from them with "
        f"`lrrt-stage train --lrrt-run-id {run.info.run_id}`.",
        f"[Runs that start from this one]({followers_page(run)}).",
    )


def _more_tests(task: Task, plan: RangeTestPlan, reading: Reading) -> str:
    """Return how to ask for more tests, where they can change the suggestion."""
    noisy = reading.final.confidence.verdict is Verdict.NOISY
    if reading.rule != "robust" or not noisy:
        return ""
    try:
        further_jobs(task, plan, ConsensusOptions(tests=3, vary="initializations"))
    except LRRTError:  # given weights are a single initialisation
        return ""
    return "; --tests 3 --vary initializations tests two more initialisations"
