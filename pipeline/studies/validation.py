"""What the validation loss says during a range test."""

from __future__ import annotations

import math
from dataclasses import replace

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
from pipeline.studies.study import Findings, Study

__all__ = ["validation_study"]


def validation_study(study: Study) -> Findings:
    """Training and validation loss, unsmoothed, over the learning rate (article, Fig 8).

    The same test is run twice, with the sample and with the full set at every iteration, which is
    what the sample is compared with.
    """
    tests = drawable(study.measure([_job(study, name) for name in ("sample", "full")]))
    by_name = {test.job.name: test for test in tests}
    for name in ("sample", "full"):
        require(
            name in by_name,
            f"the test with validation={name} has no curve: see its run, and run the study again",
        )
    watched, full = by_name["sample"], by_name["full"]
    turn, full_turn = turning_lr(watched.curve), turning_lr(full.curve)
    # Relative, at every iteration: what is evaluated does not change the training.
    sample, every = (test.curve.finite.to_frame()["val_loss"] for test in (watched, full))
    errors = (sample / every - 1).abs()
    errors = errors[np.isfinite(errors)]
    error, largest = float(errors.median()), float(errors.max())
    above = math.log10(watched.range.max / full_turn) if watched.range else math.nan
    sentences = [
        f"The validation loss turns {_place(full_turn)} on the full set, and {_place(turn)} on the "
        "sample.",
        f"The sample's loss is off by {error:.1%} in the median of the iterations and "
        f"{largest:.1%} at most."
        if len(errors)
        else "At no iteration are the losses of the sample and of the full set both finite.",
        f"No maximum is suggested: {watched.reading.chosen.reason}."
        if watched.range is None
        else f"The suggested maximum ({watched.reading.rule}) is {watched.range.max:.3g}"
        + ("." if math.isnan(above) else f", {above:+.2f} decades from the turn."),
    ]
    rates = {"validation turns, full set": full_turn, "validation turns, sample": turn}
    for name, suggestion in watched.reading.suggestions.items():
        if suggestion.range is not None:
            rates[f"rule {name}"] = suggestion.range.max
    return Findings(
        "What the validation loss says",
        "Does the validation loss turn where the training loss does?",
        sentences,
        _advice(full_turn, above),
        {
            "turning_lr": turn,
            "full_turning_lr": full_turn,
            "turn_apart_decades": abs(math.log10(turn / full_turn)),
            "sample_error": error,
            "sample_error_max": largest,
            "max_above_turn_decades": above,
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


def _job(study: Study, validation: str) -> RangeTestJob:
    options = replace(study.plan.validation, validation=validation)
    plan = replace(study.plan, validation=options)
    return RangeTestJob(validation, study.task, plan, {"validation": validation})


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
    if not math.isnan(turn := turning_lr(full.curve)):
        ax.axvline(turn, color=drawing.GREEN, ls="-.", label=f"validation turns: {turn:.3g}")
    # The validation loss may leave at the top: before batch norm's statistics have settled, say.
    label_losses(ax, "Training and validation loss, unsmoothed", "loss", [curve.loss])
    drawing.legend_below(ax)
    return drawing.finished(figure)
