"""Why the weights must be kept: train one initialisation with another's range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.charts import Chart, Heatmap, Interval, Line, Panel
from pipeline.studies.jobs import Measured, Trained, TrainingJob
from pipeline.studies.pictures import LR_AXIS, tests_table
from pipeline.studies.ranges import farthest_pair, gap
from pipeline.studies.spread import varied_jobs
from pipeline.studies.study import Findings, Study, kind, suggested

__all__ = ["mismatch_study"]


@kind("mismatch")
def mismatch_study(study: Study) -> Findings:
    """Two initialisations A and B whose ranges differ most, each trained with both maxima.

    The article's Fig 7, and the training that it says diverges or overfits.
    """
    tests = study.source or study.measure(varied_jobs(study, study.tests(20)))
    able = [each for each in tests if each.range is not None]
    found = suggested(tests, at_least=2)
    pair = dict(zip("AB", (able[index] for index in farthest_pair(found)), strict=True))
    jobs = [
        TrainingJob(
            f"{weights} with {donor}'s range",
            pair[weights].job.task,
            lr_range,
            study.training,
            {"weights": weights, "range": donor},
        )
        for weights in "AB"
        for donor in "AB"
        if (lr_range := pair[donor].range) is not None
    ]
    trained = [each.result for each in study.run(jobs)]
    done = [each for each in trained if isinstance(each, Trained)]
    if len(done) < len(jobs):
        raise LRRTError(f"{len(jobs) - len(done)} of the four trainings failed: see their runs")
    table = pd.DataFrame([_row(each) for each in done])
    losses = {
        (each.job.labels["weights"], each.job.labels["range"]): each.val_loss for each in done
    }
    a, b = (pair[name].range for name in "AB")
    assert a is not None
    assert b is not None
    diverged = table[table["diverged"]]
    return Findings(
        "Another initialisation's range",
        "What happens if a network is trained with the range that was measured on other initial "
        "weights?",
        [
            f"Of {len(found)} initialisations, A ({pair['A'].job.name}) and B "
            f"({pair['B'].job.name}) differ most: {a} and {b}, {gap(a, b):.2g} decades apart."
            if gap(a, b) > 0
            else f"Of {len(found)} initialisations, A ({pair['A'].job.name}) and B "
            f"({pair['B'].job.name}) differ most: {a} and {b}; the two still overlap.",
            f"{len(diverged)} of the four trainings diverged."
            if len(diverged)
            else "None of the four trainings diverged.",
            *(_sentence(own, other, losses) for own, other in ("AB", "BA")),
        ],
        {
            "gap_decades": gap(a, b),
            "max_apart_decades": abs(math.log10(a.max / b.max)),
            "diverged": len(diverged),
            **{f"val_loss.{w}_with_{r}": v for (w, r), v in losses.items() if math.isfinite(v)},
        },
        {"ranges": _ranges_chart(pair), "trainings": _trainings_chart(done, losses)},
        {"Trainings": table, "Tests": tests_table(tests)},
    )


def _row(training: Trained) -> dict[str, object]:
    last = training.epochs[-1]
    return {
        **training.job.labels,
        "lr_min": training.job.lr_range.min,
        "lr_max": training.job.lr_range.max,
        "val_loss": training.val_loss,
        "val_accuracy": last.val_accuracy,
        "lowest_val_loss": min(each.val_loss for each in training.epochs),
        "diverged": training.diverged,
    }


def _sentence(own: str, other: str, losses: dict[tuple[str, str], float]) -> str:
    mine, theirs = losses[own, own], losses[own, other]
    if math.isinf(mine):
        return f"{own} diverged with its own range already."
    if math.isinf(theirs):
        return (
            f"{own} reaches a validation loss of {mine:.3g} with its own range, and diverges with "
            f"{other}'s."
        )
    return (
        f"{own} reaches a validation loss of {mine:.3g} with its own range and {theirs:.3g} with "
        f"{other}'s, {theirs / mine:.3g} times as much."
    )


def _ranges_chart(pair: dict[str, Measured]) -> Chart:
    ranges = [each.range for each in pair.values() if each.range is not None]
    rows = Interval(
        [f"{name}: {each.job.name}" for name, each in pair.items()],
        np.array([each.min for each in ranges]),
        np.array([each.max for each in ranges]),
        name="suggested range",
    )
    title = "The two initialisations whose ranges differ most"
    return Chart(title, (Panel("", LR_AXIS, items=(rows,), xlog=True),))


def _trainings_chart(trained: Sequence[Trained], losses: dict[tuple[str, str], float]) -> Chart:
    values = np.array([[losses[weights, donor] for donor in "AB"] for weights in "AB"])
    shown = np.where(np.isfinite(values), values, np.nan)
    texts = [[f"{v:.3g}" if math.isfinite(v) else "diverged" for v in row] for row in values]
    lines = tuple(
        Line(
            np.array([epoch.iteration for epoch in each.epochs]),
            np.array([e.val_loss if math.isfinite(e.val_loss) else np.nan for e in each.epochs]),
            each.job.name,
            markers=True,
        )
        for each in trained
    )
    cells = Heatmap(
        shown, ["A's range", "B's range"], ["weights A", "weights B"], "loss", texts=texts
    )
    return Chart(
        "Two initialisations, each trained with both ranges",
        (
            Panel("Validation loss at the end", items=(cells,)),
            Panel(
                "Validation loss after each epoch", "iteration", "validation loss", lines, ylog=True
            ),
        ),
    )
