"""Why the weights must be kept: train one initialisation with another's range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lrrt_stage import LRRTError
from lrrt_stage.charts import Chart, Heatmap, Interval, Line, Panel
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestResult, TrainingJob, TrainingResult
from pipeline.studies.figures import LR_AXIS, tests_table
from pipeline.studies.initializations import varied_jobs
from pipeline.studies.ranges import farthest_pair, gap
from pipeline.studies.study import Findings, Study, alike, counted, kind, suggested

__all__ = ["mismatch_study"]


@kind("mismatch", takes_tests=True)
def mismatch_study(study: Study) -> Findings:
    """Two initialisations A and B whose ranges differ most, each trained with both maxima.

    The article's Fig 7, and the training that it says diverges or overfits.
    """
    if study.source is None:
        tests = study.measure(varied_jobs(study, study.tests(20)))
    else:
        tests = _initialisations(study, study.source)
    able = [each for each in tests if each.range is not None]
    found = suggested(tests, at_least=2)
    pair = dict(zip("AB", (able[index] for index in farthest_pair(found)), strict=True))
    a, b = (found[index] for index in farthest_pair(found))
    require(
        not math.isclose(a.max, b.max, rel_tol=1e-9),
        f"the maxima of all {len(found)} initialisations are {a.max:.3g}, so there is no other to "
        "train with: raise the number of tests or the iterations of each",
    )
    jobs = [
        TrainingJob(
            f"{weights} with {donor}'s range",
            pair[weights].job.task,
            lr_range,
            study.training,
            {"weights": weights, "range": donor},
        )
        for weights in "AB"
        for donor, lr_range in (("A", a), ("B", b))
    ]
    outcomes = study.run(jobs)
    done = [each.result for each in outcomes if isinstance(each.result, TrainingResult)]
    if len(done) < len(jobs):
        error = next(each.error for each in outcomes if each.result is None)
        raise LRRTError(
            f"{len(jobs) - len(done)} of the four trainings failed, all are needed; the first: "
            f"{error}"
        )
    table = pd.DataFrame([_row(each) for each in done])
    losses = {
        (each.job.labels["weights"], each.job.labels["range"]): each.val_loss for each in done
    }
    diverged = [each.job.name for each in done if _diverged(each)]
    apart = f"{gap(a, b):.2g} decades apart" if gap(a, b) > 0 else "which overlap or touch"
    return Findings(
        "Another initialisation's range",
        "What happens if a network is trained with the range that was measured on other initial "
        "weights?",
        [
            f"Of {len(found)} initialisations, A ({pair['A'].job.name}) and B "
            f"({pair['B'].job.name}) differ most: {a} and {b}, {apart}.",
            f"{len(diverged)} of the four trainings diverged, to a loss that is not finite or no "
            f"lower than the first: {', '.join(diverged)}."
            if diverged
            else "None of the four trainings diverged.",
            *(_sentence(own, other, losses) for own, other in ("AB", "BA")),
            _verdict(losses),
        ],
        {
            "gap_decades": gap(a, b),
            "max_apart_decades": abs(math.log10(a.max / b.max)),
            "diverged": len(diverged),
            **{f"val_loss.{weights}_with_{donor}": v for (weights, donor), v in losses.items()},
        },
        {"ranges": _ranges_chart(pair), "trainings": _trainings_chart(done)},
        {"Trainings": table, "Tests": tests_table(tests)},
    )


def _initialisations(study: Study, source: Sequence[RangeTestResult]) -> list[RangeTestResult]:
    """Return the first test of every seed of weights, of those of the study's very task.

    A finished study may hold tests of one seed in several orders, batch sizes or settings.
    """
    by_seed: dict[int, RangeTestResult] = {}
    for each in alike(study, source):
        by_seed.setdefault(each.job.task.seed, each)
    require(
        len(by_seed) >= 2,
        f"the finished study has {counted(len(by_seed), 'initialisation')} of this task, 2 are "
        "needed: name a study of kind initializations, or none",
    )
    return list(by_seed.values())


def _diverged(training: TrainingResult) -> bool:
    """Whether a loss was not finite, or the last epoch's is no lower in the median than the first.

    A network whose units died stays at the loss of a guess, and batch norm keeps the loss of
    weights that exploded finite.
    """
    losses = training.train_loss
    last = losses[-max(1, len(losses) // len(training.epochs)) :]
    return training.diverged or float(np.median(last)) >= losses[0]


def _row(training: TrainingResult) -> dict[str, object]:
    last = training.epochs[-1]
    finite = [each.val_loss for each in training.epochs if math.isfinite(each.val_loss)]
    return {
        **training.job.labels,
        "lr_min": training.job.lr_range.min,
        "lr_max": training.job.lr_range.max,
        "val_loss": training.val_loss,
        "val_accuracy": last.val_accuracy,
        "lowest_val_loss": min(finite, default=math.inf),
        "diverged": _diverged(training),
    }


def _sentence(own: str, other: str, losses: dict[tuple[str, str], float]) -> str:
    mine, theirs = losses[own, own], losses[own, other]
    if math.isinf(mine):
        end = "nor is it" if math.isinf(theirs) else f"and ends at {theirs:.3g}"
        return f"{own}'s loss is not finite with its own range, {end} with {other}'s."
    if math.isinf(theirs):
        return (
            f"{own} ends at a validation loss of {mine:.3g} with its own range, and at one that is "
            f"not finite with {other}'s."
        )
    times = f", {theirs / mine:.3g} times as much" if mine > 0 else ""
    return (
        f"{own} ends at a validation loss of {mine:.3g} with its own range and {theirs:.3g} with "
        f"{other}'s{times}."
    )


def _verdict(losses: dict[tuple[str, str], float]) -> str:
    better = [own for own, other in ("AB", "BA") if losses[own, own] < losses[own, other]]
    if len(better) == 2:
        return "Each does better with its own range: a range goes with the weights it was found on."
    if better:
        return (
            f"Only {better[0]} does better with its own range; the other's range is the worse one "
            "for both."
        )
    return "Neither does better with its own range: the ranges themselves are not to be trusted."


def _cell(training: TrainingResult) -> str:
    texts = [f"{training.val_loss:.3g}"] if math.isfinite(training.val_loss) else []
    return ", ".join([*texts, *(["diverged"] if _diverged(training) else [])])


def _ranges_chart(pair: dict[str, RangeTestResult]) -> Chart:
    ranges = [each.range for each in pair.values() if each.range is not None]
    rows = Interval(
        [f"{name}: {each.job.name}" for name, each in pair.items()],
        np.array([each.min for each in ranges]),
        np.array([each.max for each in ranges]),
        name="suggested range",
    )
    title = "The two initialisations whose ranges differ most"
    return Chart(title, (Panel("", LR_AXIS, items=(rows,), xlog=True),))


def _trainings_chart(trained: Sequence[TrainingResult]) -> Chart:
    cells = {(each.job.labels["weights"], each.job.labels["range"]): each for each in trained}
    square = [[cells[weights, donor] for donor in "AB"] for weights in "AB"]
    values = np.array([[each.val_loss for each in row] for row in square])
    shown = np.where(np.isfinite(values), values, np.nan)
    texts = [[_cell(each) for each in row] for row in square]
    lines = tuple(
        Line(
            np.array([epoch.iteration for epoch in each.epochs]),
            np.array([e.val_loss if math.isfinite(e.val_loss) else np.nan for e in each.epochs]),
            each.job.name,
            markers=True,
        )
        for each in trained
    )
    heatmap = Heatmap(
        shown, ["A's range", "B's range"], ["weights A", "weights B"], "loss", texts=texts
    )
    return Chart(
        "Two initialisations, each trained with both ranges",
        (
            Panel("Validation loss at the end", items=(heatmap,)),
            Panel(
                "Validation loss after each epoch", "iteration", "validation loss", lines, ylog=True
            ),
        ),
    )
