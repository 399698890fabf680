"""The check stage: does the learning rate in use still fit today's code and data?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import mlflow
from mlflow.entities import Run

from lrrt_stage import NoSuggestion
from lrrt_stage.charts import write_page
from lrrt_stage.settings import hide_passwords, require, setting
from mlflow_project.handoff.artifacts import read_curve
from mlflow_project.handoff.handoff import load_handoff
from mlflow_project.handoff.lineage import Source, source_of
from mlflow_project.stages.lrrt import range_test_stage
from mlflow_project.stages.shared import run_name, task_words
from mlflow_project.tracking.descriptions import describe, followed_by, link
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import (
    get_run,
    log_dataset,
    log_range,
    log_scalars,
    name_run,
    stage_run,
    staged_files,
)
from mlflow_project.tracking.tags import (
    BASELINE_TAG,
    FITS_TAG,
    MISMATCH_TAG,
    REASON_TAG,
    RULE_TAG,
    STAGE_TAG,
    STEP_TAGS,
    VERDICT_TAG,
    WEIGHTS_TAG,
)
from pipeline import PreparedTask, RangeTestPlan, Runtime, Task
from pipeline.decide.fit_check import Answer, CheckOptions, CheckResult, still_fits
from pipeline.decide.overlay import Overlaid, overlay_chart
from pipeline.decide.several_tests import ConsensusOptions

__all__ = ["CheckRunOptions", "check_stage"]


@dataclass(frozen=True)
class CheckRunOptions(CheckOptions):
    """What is compared with what."""

    baseline: str = setting(
        "latest",
        "Run (train, main, refine, lrrt, check) or models:/NAME/VERSION to compare with; latest: "
        "the newest finished training of the experiment.",
    )


def check_stage(
    runtime: Runtime,
    options: CheckRunOptions,
    *,
    changes: dict[str, Any] | None = None,
    tests: dict[str, Any] | None = None,
) -> str:
    """Run the baseline's range test again, on today's code and data, as a run; return its id.

    The run's tag ``lrrt.fits`` says ``true`` or ``false``, and ``lrrt.reason`` why, in one line.
    ``changes`` are fields of the task that are others today, and ``tests`` such of the
    :class:`ConsensusOptions`. The range test is a child run, and training can go on from it.

    Raises
    ------
    LRRTError
        If the baseline cannot be used, or today's code and data have no range test.
    """
    # Before there is a run: one for a baseline that was mistyped is in everybody's way.
    baseline = source_of(options.baseline)
    then = baseline.handoff
    mismatch = baseline.run.data.tags.get(MISMATCH_TAG)
    require(
        mismatch is None or options.lr is not None,
        f"run {baseline.run.info.run_id} is of another task than its range test ({mismatch}), "
        "which so says nothing of its learning rate: run lrrt on that task and name that run, or "
        "give lr",
    )
    consensus = replace(then.consensus, **tests or {})
    task = replace(then.task, **changes or {})
    with stage_run("check") as run:
        name_run(run, run_name(task))
        lr = baseline.peak_lr if options.lr is None else options.lr
        prepared = PreparedTask(task, runtime)
        # The rule that was used, which may have stood in for the one that was asked for.
        rule = replace(then.plan.suggestion, rule=then.rule)
        plan = replace(then.plan, suggestion=rule)
        log_options(run, task, plan, consensus, options, device=str(prepared.device))
        log_dataset(prepared)
        mlflow.set_tag(BASELINE_TAG, baseline.run.info.run_id)
        log_range(run, "baseline", then.range)
        log_scalars(run, {"lr_in_use": lr})
        run_id, today, problem = _test_again(run, task, runtime, plan, consensus, prepared)
        earlier = Overlaid("baseline", then.curve, then.plan.smoothing, then.range, then.confidence)
        if today.range is None:
            result = CheckResult(False, f"today's range test has no suggestion: {problem}")
        else:
            result = still_fits(
                Answer(then.range, then.confidence),
                Answer(today.range, today.confidence),
                lr,
                options.tolerance,
            )
        with staged_files(run) as folder:
            title = f"LR {lr:.3g} {'still fits' if result.fits else 'no longer fits'}"
            chart = overlay_chart(title, [earlier, today], lr)
            chart.figure().savefig(folder / "overlay.png")
            write_page(chart.page(), folder / "overlay.html")
        _conclude(run, baseline, run_id, today, prepared, result)
    return run.info.run_id


def _test_again(
    run: Run,
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    prepared: PreparedTask,
) -> tuple[str, Overlaid, str]:
    """Return today's range test: its run, what is drawn of it, and why it has no suggestion."""
    rule, problem = plan.suggestion.rule, ""
    try:
        found = load_handoff(range_test_stage(task, runtime, plan, consensus, prepared=prepared))
        if found.rule == rule:
            drawn = Overlaid("today", found.curve, plan.smoothing, found.range, found.confidence)
            return found.run_id, drawn, ""
        # Another rule stood in for it, which would be compared with this one.
        run_id, problem = found.run_id, f"rule {rule} has none, {found.rule} has {found.range}"
    except NoSuggestion as reason:
        (child,) = mlflow.MlflowClient().search_runs(
            [run.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`{STAGE_TAG}` = 'lrrt'",
        )
        run_id, problem = child.info.run_id, str(reason)
    with tempfile.TemporaryDirectory(prefix="lrrt-") as folder:
        curve = read_curve(get_run(run_id), folder)
    return run_id, Overlaid("today", curve, plan.smoothing), problem


def _conclude(
    run: Run,
    baseline: Source,
    run_id: str,
    today: Overlaid,
    prepared: PreparedTask,
    result: CheckResult,
) -> None:
    then = baseline.handoff
    mlflow.set_tags(
        {
            FITS_TAG: str(result.fits).lower(),
            REASON_TAG: result.reason,
            RULE_TAG: then.rule,
            STEP_TAGS["lrrt"]: run_id,
        }
    )
    if today.range is not None:
        log_range(run, "suggested", today.range)
        log_scalars(run, {"moved_decades": result.moved, "allowed_decades": result.allowed})
    if today.confidence is not None:
        mlflow.set_tag(VERDICT_TAG, str(today.confidence.verdict))
    changed = prepared.task.differences(then.task)
    if prepared.data.digest != then.data_sha256:
        changed.append(f"the content of dataset {prepared.task.dataset!r}")
    if get_run(run_id).data.tags[WEIGHTS_TAG] != then.weights_sha256:
        changed.append("the initial weights, and so the model or its initialisation")
    verdict = "still fits" if result.fits else "no longer fits"
    describe(
        run,
        f"The learning rate in use by {link(baseline.run)} **{verdict}** "
        f"{task_words(prepared.task)}: {result.reason}.",
        f"The range test behind it is {link(then.run_id)}, that of today {link(run_id)}.",
        f"What is known to differ: {hide_passwords('; '.join(changed)) or 'nothing'}.",
    )
    followed_by(baseline.run.info.run_id, run)
