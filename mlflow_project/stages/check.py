"""The check stage: does the learning rate in use still fit today's code and data?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import isclose
from typing import Any

from mlflow.entities import Run

from lrrt_stage import Confidence, LRRange, NoSuggestion, Reading, Suggestion, suggest
from lrrt_stage.errors import excerpt
from lrrt_stage.plots.comparison_plot import comparison_figure
from lrrt_stage.plots.drawing import save_figure
from lrrt_stage.settings import hide_passwords, require
from mlflow_project.handoff.handoff import Handoff, read_handoff, source_of
from mlflow_project.handoff.signature import sign_run
from mlflow_project.stages.lrrt import range_test_stage
from mlflow_project.stages.options import CheckOptions
from mlflow_project.stages.shared import run_name, task_words
from mlflow_project.tracking import tags
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import log_prepared, log_range, stage_run
from mlflow_project.tracking.views import link, set_description
from pipeline import PreparedTask, Runtime
from pipeline.decide.fit_check import CheckResult, still_fits

__all__ = ["check_stage"]


def check_stage(
    runtime: Runtime,
    options: CheckOptions,
    *,
    changes: dict[str, Any] | None = None,
    consensus_changes: dict[str, Any] | None = None,
) -> str:
    """Run the baseline's range test again, on today's code and data, as a run; return its id.

    The run's tag ``lrrt.fits`` is ``true`` or ``false``, and ``lrrt.reason`` says why, in one line.
    ``changes`` are fields of the task that differ today, and ``consensus_changes`` such fields of
    :class:`ConsensusOptions`. The range test is a child run, and training can continue from it.
    """
    # Resolved before a run is opened: a mistyped baseline leaves no run behind.
    baseline, then = source_of(
        options.baseline, trust=options.trust, require_signature=options.require_signature
    )
    mismatch = baseline.data.tags.get(tags.MISMATCH)
    require(
        mismatch is None or options.lr is not None,
        f"run {baseline.info.run_id} has a different task than its range test "
        f"({excerpt(mismatch)}), which therefore cannot judge its learning rate: run lrrt on that "
        "task and name that run, or give lr",
    )
    consensus = replace(then.consensus_options, **consensus_changes or {})
    task = replace(then.recipe, **changes or {})
    # The rule that was used, which may differ from the one that was asked for.
    plan = replace(then.plan, suggestion=replace(then.plan.suggestion, rule=then.rule))
    lr = _peak_lr(baseline, then) if options.lr is None else options.lr
    with stage_run("check", run_name(task), keeps_children=True) as run:
        log_options(task, plan, consensus, options)
        prepared = PreparedTask(task, runtime)
        log_prepared(prepared)
        run.set_tags({tags.BASELINE: baseline.info.run_id})
        log_range("baseline", then.range)
        run.log_metrics({"lr_in_use": lr})
        folder = run.begin_work()
        # The run of a range test without a suggestion holds what is compared as well.
        with suppress(NoSuggestion):
            range_test_stage(task, runtime, plan, consensus, prepared=prepared)
        (test,) = run.children
        now = read_handoff(test.as_run())
        today = now.reading
        if today.rule != then.rule:
            reason = f"rule {then.rule} has none, {today.rule} suggests {today.final.range}"
            today = replace(today, rule=then.rule, consensus=NoSuggestion(reason))
        result = still_fits(_as_read_today(then.reading), today.final, lr, options.tolerance)
        title = f"LR {lr:.3g} {'still fits' if result.fits else 'no longer fits'}"
        overlaid = {"baseline": then.reading, "today": today}
        save_figure(comparison_figure(title, overlaid, lr), folder / "overlay.png")
        run.set_tags(
            {
                tags.FITS: str(result.fits).lower(),
                tags.REASON: result.reason,
                tags.RULE: then.rule,
                tags.STEPS["lrrt"]: now.run_id,
                tags.VERDICT: today.verdict,
            }
        )
        if today.final.range is not None:
            log_range("suggested", today.final.range)
            run.log_metrics({"moved_decades": result.moved, "allowed_decades": result.allowed})
        _describe(baseline, then, now, result)
        sign_run()
    return run.run_id


def _as_read_today(then: Reading) -> Suggestion:
    """Return the baseline's suggestion as its rule reads the same curve today.

    An earlier version of a rule may have suggested another multiple of the same learning rate.
    """
    published, final = then.chosen.range, then.final
    with suppress(NoSuggestion):
        read = suggest(then.curve, then.rule, then.smoothing)
        if published is not None and final.range is not None:
            factor = read.max / published.max
            if not isclose(factor, 1, rel_tol=1e-6):
                scaled = LRRange(final.range.min * factor, final.range.max * factor)
                low, high = final.confidence.low * factor, final.confidence.high * factor
                return Suggestion(scaled, Confidence(low, high, final.confidence.verdict))
    return final


def _peak_lr(baseline: Run, then: Handoff) -> float:
    """Return the largest rate of a training, a refinement, or else of the suggested range."""
    metrics = baseline.data.metrics
    names = ("trained_lr_max", "refined_lr_max", "lr_in_use")
    return next((metrics[name] for name in names if name in metrics), then.narrowed().max)


def _describe(baseline: Run, then: Handoff, now: Handoff, result: CheckResult) -> None:
    changed = now.recipe.differences(then.recipe)
    if now.data_sha256 != then.data_sha256:
        changed.append(f"the content of dataset {now.recipe.data_name!r}")
    if now.weights_sha256 != then.weights_sha256:
        changed.append("the initial weights, and so the model or its initialisation")
    verdict = "still fits" if result.fits else "no longer fits"
    set_description(
        f"The learning rate in use by {link(baseline)} **{verdict}** "
        f"{task_words(now.recipe)}: {result.reason}.",
        f"The baseline's range test is {link(then.run_id)}, today's is {link(now.run_id)}.",
        f"Known differences: {hide_passwords('; '.join(changed)) or 'nothing'}.",
    )
