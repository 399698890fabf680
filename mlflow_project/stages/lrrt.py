"""The range-test stage: seeded weights, the test on exactly those, and what is read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lrrt_stage import (
    RULES,
    Consensus,
    LRCurve,
    NoSuggestion,
    Reading,
    Verdict,
)
from lrrt_stage.measure.ramp_loop import curve_of
from lrrt_stage.rules.uncertainty import CLEAR_DECADES, ramp_movement
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from mlflow_project.handoff.artifacts import find_run, read_weights
from mlflow_project.handoff.fingerprints import fingerprint
from mlflow_project.handoff.published import CURVE, FINAL_WEIGHTS, FINAL_WEIGHTS_TAG, WEIGHTS
from mlflow_project.handoff.publishing import publish_inputs, publish_reading
from mlflow_project.handoff.signature import check_signature, sign_run
from mlflow_project.stages.job_runs import JobRuns, finished_jobs, same_runs
from mlflow_project.stages.shared import run_name, task_words
from mlflow_project.tracking import console, tags
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.record import active_record
from mlflow_project.tracking.runs import log_curve, log_prepared, log_reading, stage_run
from mlflow_project.tracking.views import followers_page, link, set_description
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.decide.options import VARIED, ConsensusOptions
from pipeline.decide.several_tests import combined_reading, further_jobs
from pipeline.jobs.jobs import FailedJob, JobResult, RangeTestResult

__all__ = ["lrrt_fingerprint", "measure", "publish_suggestion", "range_test_stage"]


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
        log_options(task, plan, consensus)
        prepared = prepared or PreparedTask(task, runtime)
        log_prepared(prepared)
        # Set before the test, so that the tests of an interrupted run are found again.
        test_fingerprint = lrrt_fingerprint(prepared, plan, consensus)
        run.set_tags({tags.FINGERPRINT: test_fingerprint})
        jobs = further_jobs(task, plan, consensus)
        state = _initial_weights(prepared)
        finished = {}
        if jobs:
            finished = finished_jobs(same_runs(test_fingerprint, "lrrt", "FAILED", "KILLED"))
        # Published before the test, so that the weights are kept however it ends.
        digest, device = prepared.data_digest, str(prepared.device)
        publish_inputs(run.files, task, plan, state, digest, device)
        folder = run.begin_work()
        with run.bundle():
            first = plan.read(measure(plan, folder, partial(prepared.range_test, state, plan)))
            others = []
            if jobs:
                run.outbox.send()  # others may be looked at while these run
                tests = JobRuns(run, prepared, "tests", consensus, finished)
                others = [_reading(result) for result in tests(jobs)]
            reading = combined_reading([first, *others], consensus)
            publish_suggestion(task, task_words(task), plan, reading, folder)
            sign_run()
    return run.run_id


def lrrt_fingerprint(
    prepared: PreparedTask, plan: RangeTestPlan, consensus: ConsensusOptions
) -> str:
    """Return the fingerprint of range tests that would give the same curve and suggestion."""
    return fingerprint("lrrt", prepared, plan=plan, consensus=consensus.without_place())


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
    check_signature(run)
    active_record().set_tags({tags.SOURCE: run_id})
    trained = run.data.tags[tags.STAGE] == "train"
    name, tag = (FINAL_WEIGHTS, FINAL_WEIGHTS_TAG) if trained else (WEIGHTS, tags.WEIGHTS)
    return prepared.initial_weights(read_weights(run, name, tag))


def measure(
    plan: RangeTestPlan,
    folder: Path,
    run_test: Callable[[Callable[[int, int], None]], LRCurve],
) -> LRCurve:
    """Return the curve of the range test; it is kept at once, also where the test ends early."""

    def keep(curve: LRCurve) -> None:
        log_curve(curve, plan.smoothing)
        curve.to_csv(folder / CURVE, plan.smoothing)

    try:
        with console.progress("range test") as progress:
            curve = run_test(progress)
    except BaseException as error:
        if (measured := curve_of(error)) is not None:
            keep(measured)
        raise
    keep(curve)
    return curve


def _reading(result: JobResult) -> Reading | NoSuggestion:
    if isinstance(result, RangeTestResult):
        return result.reading
    assert isinstance(result, FailedJob)
    return NoSuggestion(f"{result.job.name} failed: {result.reason}")


def publish_suggestion(
    task: Task | None, subject: str, plan: RangeTestPlan, reading: Reading, folder: Path
) -> None:
    """Publish, log, print and describe a reading; raise NoSuggestion if it has no range.

    A test of objects in hand has no task. ``subject`` is how the description names what is tested.
    """
    publish_reading(folder, reading)
    log_reading(reading)
    asked, final = plan.suggestion.rule, reading.final
    if final.range is None:
        verdict = final.confidence.verdict
        raise NoSuggestion(f"no rule has a suggestion; {asked}: {final.reason}", verdict)
    for note in _notes(task, asked, reading):
        console.note(note)
    curve, rule = reading.curve, reading.rule
    run = active_record()
    source = run.tags.get(tags.SOURCE)
    start = f", from the weights of {link(source)}" if source else ""
    command = f"`lrrt-stage train --lrrt-run-id {run.run_id}` trains from them"
    use = "`mlflow_project.load_handoff` loads them" if task is None else command
    set_description(
        f"LR range test of {subject}{start}: {len(curve)} iterations ({curve.stop}).",
        f"Rule `{rule}` suggests learning rates from **{_found(reading)}**. "
        f"{RULES[rule].explanation}",
        f"The initial weights are the artifact `{WEIGHTS}`: {use}.",
        f"[Runs that start from this one]({followers_page(run.as_run())}).",
    )


def _found(reading: Reading) -> str:
    """Return the suggested range with its confidence, or the consensus of several tests."""
    final = reading.final
    if not isinstance(reading.consensus, Consensus):
        return f"{final.range}: {final.confidence}"
    falling = final.confidence.verdict is Verdict.STILL_FALLING
    more = f"; {final.confidence.verdict}" if falling else ""
    return f"{reading.consensus}; the tests differ in {VARIED[reading.consensus.vary]}{more}"


def _notes(task: Task | None, asked: str, reading: Reading) -> Iterator[str]:
    """Yield what a person who reads the suggestion has to know."""
    rule, final = reading.rule, reading.final
    if rule != asked:
        reason = reading.suggestions[asked].reason or "too few of the tests have one"
        yield f"rule {asked} has no suggestion: {reason}; rule {rule} is used instead"
    if isinstance(reading.consensus, Consensus):
        yield f"rule {rule} suggests {_found(reading)}"
    elif not final.confidence.clear:
        yield f"the suggestion is {final.confidence}"
        if task is not None and final.confidence.verdict is Verdict.NOISY:
            is_wide = final.confidence.decades > CLEAR_DECADES
            if is_wide and len(reading.curve.probed) < len(reading.curve):
                yield "--probe-every 1 evaluates the probe more often, which narrows the interval"
            # Weights that are given, as file: or run:, are a single initialisation.
            if ":" not in task.initial:
                yield "--tests 3 --vary initializations tests two more initialisations"
    if reading.lacks_probe:
        yield (
            f"rule {rule} had no probe and read the training loss, which is noisier: give "
            "held-out examples for a surer suggestion"
        )
    if moved := ramp_movement(reading.curve, rule):
        yield (
            f"this ramp is known to move the maximum of rule {rule} by about {moved:.2g} decades, "
            "compared with 100 iterations from 1e-7"
        )
