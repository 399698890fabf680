"""Why the weights must be kept: train an initialisation with the range of a different one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.settings import require
from pipeline.jobs.jobs import RangeTestResult, TrainingJob, TrainingResult
from pipeline.studies.figures import ranges_figure
from pipeline.studies.initializations import varied_jobs
from pipeline.studies.ranges import coverage, farthest_pair, gap
from pipeline.studies.study import (
    Findings,
    Study,
    counted,
    differing_in_seeds,
    kind,
    suggested,
)
from pipeline.studies.tables import tests_table

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
    able = [test for test in tests if test.range is not None]
    found = suggested(tests, at_least=2)
    farthest = farthest_pair(found)
    pair = dict(zip("AB", (able[index] for index in farthest), strict=True))
    a, b = (found[index] for index in farthest)
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
    done = [o.result for o in outcomes if isinstance(o.result, TrainingResult)]
    if len(done) < len(jobs):
        error = next(outcome.error for outcome in outcomes if outcome.result is None)
        raise LRRTError(
            f"{len(jobs) - len(done)} of the four trainings failed, all are needed; the first: "
            f"{error}"
        )
    losses = {(t.job.labels["weights"], t.job.labels["range"]): t.val_loss for t in done}
    diverged = [training.job.name for training in done if _diverged(training)]
    covered, sentence = coverage(found, len(tests))
    apart = f"{gap(a, b):.2g} decades apart" if gap(a, b) > 0 else "which overlap or touch"
    return Findings(
        "The range of a different initialisation",
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
        "Train an initialisation with the range that was measured on it: the range test hands its "
        f"weights on together with the range. Where they cannot be kept: {sentence}",
        {
            "gap_decades": gap(a, b),
            "max_apart_decades": abs(math.log10(a.max / b.max)),
            "diverged": len(diverged),
            **{f"val_loss.{weights}_with_{donor}": v for (weights, donor), v in losses.items()},
            **covered,
        },
        {"ranges": ranges_figure(tests), "trainings": _trainings_figure(done)},
        {"Trainings": pd.DataFrame(map(_row, done)), "Tests": tests_table(tests)},
    )


def _initialisations(study: Study, source: Sequence[RangeTestResult]) -> list[RangeTestResult]:
    """Return the first test of every seed of weights, among those of the study's own task.

    A finished study may hold tests of one seed in several orders, batch sizes or settings.
    """
    by_seed: dict[int, RangeTestResult] = {}
    for test in differing_in_seeds(study, source):
        by_seed.setdefault(test.job.task.seed, test)
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
    finite = [epoch.val_loss for epoch in training.epochs if math.isfinite(epoch.val_loss)]
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


def _trainings_figure(trained: Sequence[TrainingResult]) -> Figure:
    cells = {(t.job.labels["weights"], t.job.labels["range"]): t for t in trained}
    square = [[cells[weights, donor] for donor in "AB"] for weights in "AB"]
    losses = np.array([[training.val_loss for training in row] for row in square])
    figure, (matrix, lines) = drawing.new_figure(heights=[2.6, 3.6])
    drawing.plot_matrix(
        matrix,
        np.where(np.isfinite(losses), losses, np.nan),
        ["A's range", "B's range"],
        ["weights A", "weights B"],
        "validation loss",
        [[_cell(training) for training in row] for row in square],
    )
    matrix.set_title("Validation loss at the end", fontsize=10.5)
    for training, color, style in zip(
        trained, drawing.COLORS, ("-", "--", "-.", ":"), strict=False
    ):
        steps = [epoch.iteration for epoch in training.epochs]
        finite = [e.val_loss if math.isfinite(e.val_loss) else np.nan for e in training.epochs]
        lines.plot(steps, finite, "o", ls=style, color=color, ms=3, label=training.job.name)
    title = "Validation loss after each epoch"
    drawing.label_axes(lines, title, "iteration", "validation loss", log="y")
    drawing.legend_below(lines)
    return drawing.finished(figure)
