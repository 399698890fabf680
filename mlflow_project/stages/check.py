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
from mlflow_project import tracking
from mlflow_project.artifacts import read_curve
from mlflow_project.descriptions import describe, followed_by, link
from mlflow_project.handoff import load_handoff
from mlflow_project.lineage import Source, source_of
from mlflow_project.params import log_options
from mlflow_project.stages.lrrt import lrrt
from mlflow_project.stages.opening import run_name, task_words
from mlflow_project.tags import (
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
from mlflow_project.tracking import stage_run, staged_files
from pipeline import RangeTestPlan, Runtime, Task, Workbench
from pipeline.consensus import ConsensusOptions
from pipeline.gate import Answer, Finding, GateOptions, still_fits
from pipeline.overlay import Overlaid, overlay_chart

__all__ = ["CheckOptions", "check_stage"]


@dataclass(frozen=True)
class CheckOptions(GateOptions):
    """What is compared with what."""

    baseline: str = setting(
        "latest",
        "Run (train, main, refine, lrrt, check) or models:/NAME/VERSION to compare with; latest: "
        "the newest finished training of the experiment.",
    )


def check_stage(
    runtime: Runtime,
    options: CheckOptions,
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
        tracking.name_run(run, run_name(task))
        lr = baseline.peak_lr if options.lr is None else options.lr
        bench = Workbench(task, runtime)
        # The rule that was used, which may have stood in for the one that was asked for.
        rule = replace(then.plan.suggestion, rule=then.rule)
        plan = replace(then.plan, suggestion=rule)
        log_options(run, task, plan, consensus, options, device=str(bench.device))
        tracking.log_dataset(bench)
        mlflow.set_tag(BASELINE_TAG, baseline.run.info.run_id)
        tracking.log_range(run, "baseline", then.range)
        tracking.log_scalars(run, {"lr_in_use": lr})
        run_id, today, problem = _test_again(run, task, runtime, plan, consensus, bench)
        earlier = Overlaid("baseline", then.curve, then.plan.smoothing, then.range, then.confidence)
        if today.range is None:
            finding = Finding(False, f"today's range test has no suggestion: {problem}")
        else:
            finding = still_fits(
                Answer(then.range, then.confidence),
                Answer(today.range, today.confidence),
                lr,
                options.tolerance,
            )
        with staged_files(run) as folder:
            title = f"LR {lr:.3g} {'still fits' if finding.fits else 'no longer fits'}"
            chart = overlay_chart(title, [earlier, today], lr)
            chart.figure().savefig(folder / "overlay.png")
            write_page(chart.page(), folder / "overlay.html")
        _conclude(run, baseline, run_id, today, bench, finding)
    return run.info.run_id


def _test_again(
    run: Run,
    task: Task,
    runtime: Runtime,
    plan: RangeTestPlan,
    consensus: ConsensusOptions,
    bench: Workbench,
) -> tuple[str, Overlaid, str]:
    """Return today's range test: its run, what is drawn of it, and why it has no suggestion."""
    rule, problem = plan.suggestion.rule, ""
    try:
        found = load_handoff(lrrt(task, runtime, plan, consensus, bench=bench))
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
        curve = read_curve(tracking.get_run(run_id), folder)
    return run_id, Overlaid("today", curve, plan.smoothing), problem


def _conclude(
    run: Run,
    baseline: Source,
    run_id: str,
    today: Overlaid,
    bench: Workbench,
    finding: Finding,
) -> None:
    then = baseline.handoff
    mlflow.set_tags(
        {
            FITS_TAG: str(finding.fits).lower(),
            REASON_TAG: finding.reason,
            RULE_TAG: then.rule,
            STEP_TAGS["lrrt"]: run_id,
        }
    )
    if today.range is not None:
        tracking.log_range(run, "suggested", today.range)
        tracking.log_scalars(
            run, {"moved_decades": finding.moved, "allowed_decades": finding.allowed}
        )
    if today.confidence is not None:
        mlflow.set_tag(VERDICT_TAG, str(today.confidence.verdict))
    changed = bench.task.differences(then.task)
    if bench.data.digest != then.data_sha256:
        changed.append(f"the content of dataset {bench.task.dataset!r}")
    if tracking.get_run(run_id).data.tags[WEIGHTS_TAG] != then.weights_sha256:
        changed.append("the initial weights, and so the model or its initialisation")
    verdict = "still fits" if finding.fits else "no longer fits"
    describe(
        run,
        f"The learning rate in use by {link(baseline.run)} **{verdict}** {task_words(bench.task)}: "
        f"{finding.reason}.",
        f"The range test behind it is {link(then.run_id)}, that of today {link(run_id)}.",
        f"What is known to differ: {hide_passwords('; '.join(changed)) or 'nothing'}.",
    )
    followed_by(baseline.run.info.run_id, run)
