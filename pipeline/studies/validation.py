"""What the validation loss says during a range test, and what it costs to ask."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRCurve, LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.rules.uncertainty import CLEAR_DECADES
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.curves import drawable, label_losses, plot_published
from pipeline.studies.report import tests_table
from pipeline.studies.statistics import coverage
from pipeline.studies.study import Findings, Study, by_label, counted, suggested
from pipeline.task.plan import ValidationOptions

__all__ = ["validation_study"]


def validation_study(study: Study) -> Findings:
    """Training and validation loss, unsmoothed, over the learning rate (article, Fig 8).

    The same test is run without validation, with the sample, and with the full set at every
    iteration, which is what the sample is compared with; the first two in turn several times, for
    a ratio of costs that a busy machine does not decide.
    """
    rounds = study.tests(3, at_least=1)
    jobs = [
        _job(study, f"{validation} {index}", validation)
        for index in range(1, rounds + 1)
        for validation in ("none", "sample")
    ]
    jobs.append(_job(study, "full set", "full"))
    tests = drawable(study.measure(jobs))
    by_kind = by_label(tests, "validation")
    for name in ("none", "sample", "full"):
        require(
            name in by_kind,
            f"no test with validation={name} gave a curve: see their runs, and run the study again",
        )
    watched, full = by_kind["sample"][0], by_kind["full"][0]
    seconds = {name: median([test.seconds for test in by_kind[name]]) for name in by_kind}
    ratio, full_ratio = (seconds[name] / seconds["none"] for name in ("sample", "full"))
    turn, full_turn = turning_lr(watched.curve), turning_lr(full.curve)
    losses = watched.curve.to_frame(watched.reading.smoothing)
    # Relative, wherever the full set was evaluated beside the sample.
    errors = ((losses["val_loss"] - losses["full_val_loss"]) / losses["full_val_loss"]).abs()
    errors = errors[np.isfinite(errors)]
    error, largest = float(errors.median()), float(errors.max())
    above = math.log10(watched.range.max / full_turn) if watched.range else math.nan
    covered, sentence = coverage(suggested(tests, at_least=0), len(tests))
    sentences = [
        f"The validation loss turns {_place(full_turn)} on the full set, and {_place(turn)} on the "
        "sample.",
        f"At {counted(len(errors), 'evaluation')} of the full set the sample's loss was off by "
        f"{error:.1%} in the median and {largest:.1%} at most."
        if len(errors)
        else "No evaluation of the full set has a finite loss to compare the sample's with.",
        f"No maximum is suggested: {watched.reading.chosen.reason}."
        if watched.range is None
        else f"The suggested maximum ({watched.reading.rule}) is {watched.range.max:.3g}"
        + ("." if math.isnan(above) else f", {above:+.2f} decades from the turn."),
        f"A test with the sample takes {ratio:.2f} times as long as without validation, one with "
        f"the full set at every iteration {full_ratio:.2f} times.",
    ]
    rates = {"validation turns, full set": full_turn, "validation turns, sample": turn}
    for name, suggestion in watched.reading.suggestions.items():
        if suggestion.range is not None:
            rates[f"rule {name}"] = suggestion.range.max
    return Findings(
        "What the validation loss says",
        "Does the validation loss turn where the training loss does, and what does it cost to "
        "look?",
        sentences,
        f"{_advice(full_turn, above)} {sentence}".strip(),
        {
            "validation_cost_ratio": ratio,
            "full_validation_cost_ratio": full_ratio,
            "turning_lr": turn,
            "full_turning_lr": full_turn,
            "turn_apart_decades": abs(math.log10(turn / full_turn)),
            "sample_error": error,
            "sample_error_max": largest,
            "max_above_turn_decades": above,
            **covered,
        },
        {"validation": _figure(watched, full)},
        {
            "Learning rates": pd.DataFrame(rates.items(), columns=["where", "lr"]),
            "Tests": tests_table(tests),
        },
    )


def turning_lr(curve: LRCurve) -> float:
    """Return the learning rate at which the validation loss is lowest.

    NaN if that is where the curve begins or, of a completed test, ends: then it does not turn.
    """
    if curve.val_loss is None or not np.isfinite(curve.val_loss).any():
        raise LRRTError(
            f"none of {len(curve)} validation losses is finite: check data and loss, or lower "
            "lr_start"
        )
    finite = np.where(np.isfinite(curve.val_loss), curve.val_loss, np.inf)
    lowest = int(np.argmin(finite))
    ends = lowest == len(curve) - 1 and curve.stop == "completed"
    return math.nan if ends or lowest == 0 else float(curve.lr[lowest])


def _job(study: Study, name: str, validation: str) -> RangeTestJob:
    options = ValidationOptions(validation, study.plan.validation.validation_sample)
    plan = replace(study.plan, validation=options)
    return replace(study.job(name, {"validation": validation}), plan=plan)


def _place(turn: float) -> str:
    return "nowhere within the test" if math.isnan(turn) else f"at {turn:.3g}"


def _advice(turn: float, above: float) -> str:
    if math.isnan(turn):
        return "Raise lr_end so that the validation loss turns within the test."
    if math.isnan(above):
        return f"Look at the curves first: the validation loss turns at {turn:.3g}."
    if above > CLEAR_DECADES:
        return f"Stay below {turn:.3g}, where the validation loss turns, and watch it in training."
    return "The training loss is enough here: leave validation=none for the range test."


def _figure(watched: RangeTestResult, full: RangeTestResult) -> Figure:
    curve, every = watched.curve.finite, full.curve.finite
    assert every.val_loss is not None
    assert curve.val_loss is not None
    assert curve.full_val_loss is not None
    figure, (ax,) = drawing.new_figure()
    if watched.range is not None:
        low, high = watched.range.min, watched.range.max
        label = f"suggested ({watched.reading.rule}): {watched.range}"
        ax.axvspan(low, high, color=drawing.ORANGE, alpha=0.25, lw=0, label=label)
    plot_published(watched.job.task, ax)
    ax.plot(curve.lr, curve.loss, color=drawing.PALE, lw=1, label="training loss of each batch")
    label = "validation loss, full set at every iteration"
    ax.plot(every.lr, every.val_loss, color=drawing.BLUE, lw=2, label=label)
    label = "validation loss, sample"
    ax.plot(curve.lr, curve.val_loss, "--", color=drawing.VERMILION, lw=1.5, label=label)
    label = "full set, at times beside the sample"
    ax.plot(curve.lr, curve.full_val_loss, "o", color=drawing.BLACK, ms=4, label=label)
    if not math.isnan(turn := turning_lr(full.curve)):
        ax.axvline(turn, color=drawing.GREEN, ls="-.", label=f"validation turns: {turn:.3g}")
    # The validation loss may leave at the top: before batch norm's statistics have settled, say.
    label_losses(ax, "Training and validation loss, unsmoothed", "loss", [curve.loss])
    drawing.legend_below(ax)
    return drawing.finished(figure)
