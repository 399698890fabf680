"""Why the weights must be kept: train an initialisation with the range of a different one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrrt_stage import LRRTError
from lrrt_stage.plots import drawing
from lrrt_stage.settings import require
from pipeline.jobs.jobs import FailedJob, TrainingJob, TrainingResult
from pipeline.studies.curves import ranges_figure
from pipeline.studies.initializations import varied_jobs
from pipeline.studies.report import tests_table
from pipeline.studies.statistics import coverage
from pipeline.studies.study import Findings, Study, suggested

__all__ = ["mismatch_study"]


def mismatch_study(study: Study) -> Findings:
    """The initialisations A and B of the highest and the lowest maximum, trained with both ranges.

    The article's Fig 7, and the training that it says diverges or overfits.
    """
    tests = study.measure(varied_jobs(study, study.tests(20)))
    able = [test for test in tests if test.range is not None]
    found = suggested(tests, at_least=2)
    maxima = [lr_range.max for lr_range in found]
    ends = maxima.index(max(maxima)), maxima.index(min(maxima))
    pair = dict(zip("AB", (able[index] for index in ends), strict=True))
    a, b = (found[index] for index in ends)
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
    results = study.run(jobs)
    failed = [result for result in results if isinstance(result, FailedJob)]
    if failed:
        raise LRRTError(
            f"{len(failed)} of the four trainings failed, all are needed; the first: "
            f"{failed[0].reason}"
        )
    trainings = [result for result in results if isinstance(result, TrainingResult)]
    table = pd.DataFrame(map(_row, trainings))
    losses = {
        (t.job.labels["weights"], t.job.labels["range"]): t.history.val_loss for t in trainings
    }
    diverged = [t.job.name for t, bad in zip(trainings, table["diverged"], strict=True) if bad]
    covered, sentence = coverage(found, len(tests))
    gap = max(0.0, math.log10(a.min / b.max))
    apart = f"{gap:.2g} decades apart" if gap > 0 else "which overlap or touch"
    return Findings(
        "The range of a different initialisation",
        "What happens if a network is trained with the range that was measured on other initial "
        "weights?",
        [
            f"Of {len(found)} initialisations, A ({pair['A'].job.name}) has the highest maximum "
            f"and B ({pair['B'].job.name}) the lowest: {a} and {b}, {apart}.",
            f"{len(diverged) or 'None'} of the four trainings diverged, to a loss that is not "
            f"finite or no lower than the first{': ' if diverged else ''}{', '.join(diverged)}.",
            *(
                f"Validation loss of {own} at the end: {_loss_text(losses[own, own])} with its own "
                f"range, {_loss_text(losses[own, other])} with {other}'s."
                for own, other in ("AB", "BA")
            ),
            _verdict(losses),
        ],
        "Train an initialisation with the range that was measured on it: the range test hands its "
        f"weights on together with the range. Where they cannot be kept: {sentence}",
        {
            "gap_decades": gap,
            "max_apart_decades": math.log10(a.max / b.max),
            "diverged": len(diverged),
            **{f"val_loss.{own}_with_{donor}": loss for (own, donor), loss in losses.items()},
            **covered,
        },
        {"ranges": ranges_figure(tests), "trainings": _trainings_figure(trainings)},
        {"Trainings": table, "Tests": tests_table(tests)},
    )


def _row(training: TrainingResult) -> dict[str, object]:
    history, lr_range = training.history, training.job.lr_range
    # A network whose units died stays at the loss of a guess, and batch norm keeps the loss of
    # weights that exploded finite: so the last epoch is compared with the first loss.
    last = history.train_loss[-max(1, len(history.train_loss) // len(history.epochs)) :]
    did_not_fall = float(np.median(last)) >= history.train_loss[0]
    return {
        **training.job.labels,
        "lr_min": lr_range.min,
        "lr_max": lr_range.max,
        **history.epochs[-1].values(),
        "val_loss": history.val_loss,
        "diverged": history.diverged or did_not_fall,
    }


def _loss_text(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "not finite"


def _verdict(losses: Mapping[tuple[str, str], float]) -> str:
    better = [own for own, other in ("AB", "BA") if losses[own, own] < losses[own, other]]
    if len(better) == 2:
        return "Each does better with its own range: a range goes with the weights it was found on."
    if better:
        return (
            f"Only {better[0]} does better with its own range; the other's range is the worse one "
            "for both."
        )
    return "Neither does better with its own range: the ranges themselves are not to be trusted."


def _trainings_figure(trainings: Sequence[TrainingResult]) -> Figure:
    figure, (ax,) = drawing.new_figure()
    styles = zip(drawing.COLORS, ("-", "--", "-.", ":"), strict=False)
    for training, (color, style) in zip(trainings, styles, strict=True):
        steps = [epoch.iteration for epoch in training.history.epochs]
        shown = np.array([epoch.val_loss for epoch in training.history.epochs], dtype=float)
        shown[~np.isfinite(shown)] = np.nan
        ax.plot(steps, shown, "o", ls=style, color=color, ms=3, label=training.job.name)
    title = "Validation loss after each epoch"
    drawing.label_axes(ax, title, "iteration", "validation loss", log="y")
    drawing.legend_below(ax)
    return drawing.finished(figure)
