"""What the validation loss says during a range test, and what it costs to ask."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd

from lrrt_stage import LRCurve, LRRange, LRRTError
from lrrt_stage.charts import Chart, Item, Line, Mark, Panel, Span, limits
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestJob, RangeTestResult
from pipeline.studies.figures import LR_AXIS, drawable, published_spans
from pipeline.studies.study import Findings, Study, counted, kind
from pipeline.task.plan import ValidationOptions

__all__ = ["validation_study"]


@kind("validation")
def validation_study(study: Study) -> Findings:
    """Training and validation loss, unsmoothed, over the learning rate (article, Fig 8).

    The same test is run without validation, with the sample, and with the full set at every
    iteration, which is what the sample is compared with; the first two in turn several times, for
    a ratio of costs that a busy machine does not decide.
    """
    rounds = study.tests(3, at_least=1)
    sample = ValidationOptions("sample", study.plan.validation.validation_sample)
    settings = [("none", ValidationOptions("none")), ("sample", sample)] * rounds
    jobs = [
        _job(study, f"{name} {index // 2 + 1}", name, validation)
        for index, (name, validation) in enumerate(settings)
    ]
    jobs.append(_job(study, "full set", "full", ValidationOptions("full")))
    tests = drawable(study.measure(jobs))
    by_kind = {
        name: [each for each in tests if each.job.labels["validation"] == name]
        for name in ("none", "sample", "full")
    }
    for name, members in by_kind.items():
        require(
            bool(members),
            f"no test with validation={name} gave a curve: see their runs, and run the study again",
        )
    (watched, *_), (full, *_) = by_kind["sample"], by_kind["full"]
    seconds = {
        name: median([each.seconds for each in members]) for name, members in by_kind.items()
    }
    ratio, full_ratio = (
        seconds[name] / seconds["none"] if seconds["none"] > 0 else math.nan
        for name in ("sample", "full")
    )
    turn, full_turn = turning_lr(watched.curve), turning_lr(full.curve)
    apart = abs(math.log10(turn / full_turn))
    errors = _sample_errors(watched.curve)
    error = float(np.median(errors)) if len(errors) else math.nan
    largest = float(errors.max()) if len(errors) else math.nan
    found = watched.range
    above = math.log10(found.max / full_turn) if found else math.nan
    return Findings(
        "What the validation loss says",
        "Does the validation loss turn where the training loss does, and what does it cost to "
        "look?",
        [
            _turn_sentence(full_turn, turn),
            f"At {counted(len(errors), 'look')} at the full set the sample's loss was off by "
            f"{error:.1%} in the median and {largest:.1%} at most."
            if len(errors)
            else "No look at the full set has a finite loss to compare the sample's with.",
            f"The suggested maximum ({watched.rule}) is {_where(above)} the turn."
            if found and not math.isnan(above)
            else f"The suggested maximum ({watched.rule}) is {found.max:.3g}."
            if found
            else f"No maximum is suggested: {watched.reading.chosen.reason}.",
            *(
                [
                    f"A test with the sample takes {ratio:.2f} times as long as without "
                    f"validation, one with the full set at every iteration {full_ratio:.2f} times."
                ]
                if seconds["none"] > 0
                else []
            ),
        ],
        {
            "validation_cost_ratio": ratio,
            "full_validation_cost_ratio": full_ratio,
            "turning_lr": turn,
            "full_turning_lr": full_turn,
            "turn_apart_decades": apart,
            "sample_error": error,
            "sample_error_max": largest,
            "max_above_turn_decades": above,
        },
        {"validation": _chart(watched, full)},
        {
            "Learning rates": pd.DataFrame(
                [
                    ("validation turns, full set", full_turn),
                    ("validation turns, sample", turn),
                    *((f"rule {n}", a.max) for n, a in _answered(watched)),
                ],
                columns=["where", "lr"],
            )
        },
    )


def turning_lr(curve: LRCurve) -> float:
    """Return the learning rate at which the validation loss is lowest.

    NaN if that is where the curve begins or, of a completed test, ends: then it does not turn.

    Raises
    ------
    LRRTError
        If no validation loss is finite.
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


def _job(study: Study, name: str, group: str, validation: ValidationOptions) -> RangeTestJob:
    plan = replace(study.plan, validation=validation)
    return replace(study.job(name, {"validation": group}), plan=plan)


def _turn_sentence(full_turn: float, turn: float) -> str:
    if math.isnan(full_turn):
        return "On the full set the validation loss does not turn within the test: raise lr_end."
    if math.isnan(turn):
        return f"Validation turns at {full_turn:.3g} on the full set, and not at all on the sample."
    return (
        f"Validation turns at {full_turn:.3g} on the full set; the sample puts it at {turn:.3g}, "
        f"{abs(math.log10(turn / full_turn)):.2g} decades away."
    )


def _where(decades: float) -> str:
    if round(decades, 9) == 0:
        return "at"
    return f"{abs(decades):.2g} decades {'above' if decades > 0 else 'below'}"


def _sample_errors(curve: LRCurve) -> np.ndarray:
    """Return the relative error of the sample at each look at the full set, shape ``[looks]``."""
    assert curve.val_loss is not None
    assert curve.full_val_loss is not None
    looks = np.isfinite(curve.full_val_loss) & np.isfinite(curve.val_loss)
    looks &= curve.full_val_loss != 0
    full = curve.full_val_loss[looks]
    return np.abs(curve.val_loss[looks] - full) / np.abs(full)


def _answered(test: RangeTestResult) -> list[tuple[str, LRRange]]:
    return [(n, s.range) for n, s in test.reading.suggestions.items() if s.range is not None]


def _chart(watched: RangeTestResult, full: RangeTestResult) -> Chart:
    curve, every = watched.curve.finite, full.curve.finite
    assert curve.val_loss is not None
    assert curve.full_val_loss is not None
    assert every.val_loss is not None
    items: list[Item] = [
        Line(curve.lr, curve.loss, "training loss of each batch", "#9db4c8", 1.0),
        Line(every.lr, every.val_loss, "validation loss, full set at every iteration", "#1f4e79"),
        Line(curve.lr, curve.val_loss, "validation loss, sample", "#c0392b"),
        Line(
            curve.lr, curve.full_val_loss, "looks at the full set", "black", width=0, markers=True
        ),
    ]
    if not math.isnan(turn := turning_lr(full.curve)):
        items.append(Mark(turn, "validation turns", "#27865f"))
    items += published_spans(watched.job.task)
    if watched.range is not None:
        items.insert(0, Span(watched.range.min, watched.range.max, f"suggested ({watched.rule})"))
    title = "Training and validation loss, unsmoothed"
    # The validation loss may leave at the top: before batch norm's statistics have settled, say.
    ylim = limits(curve.loss)
    return Chart(title, (Panel("", LR_AXIS, "loss", tuple(items), xlog=True, ylim=ylim),))
