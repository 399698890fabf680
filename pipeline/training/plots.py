"""Pictures of a training and of the whole chain."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrrt_stage import Consensus, LRCurve, LRRange, Smoothing, suggest_all
from lrrt_stage.charts import Item, Mark, Span
from lrrt_stage.plots import curve_plot as plots

__all__ = ["consensus_items", "study_figures", "summary_figure", "training_figure"]

TRAIN, VAL, LR = "#9db4c8", "#c0392b", "#27865f"
OTHERS = "#333333"


def consensus_items(agreed: Consensus) -> list[Item]:
    """Return what the first test's curve shows of a consensus: its range, the others' maxima."""
    label = f"consensus of {len(agreed.ranges)} tests: {agreed.range}"
    others = [each for each in agreed.ranges[1:] if each is not None]
    return [
        Span(agreed.range.min, agreed.range.max, label, plots.SHADE),
        *(Mark(each.max, "maxima of the other tests", OTHERS, "dot") for each in others),
    ]


def training_figure(
    lr: Sequence[float],
    train_loss: Sequence[float],
    val_steps: Sequence[int],
    val_loss: Sequence[float],
) -> Figure:
    """Return losses and learning rate over the iterations; 9 by 5 inches."""
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    _training_axes(figure.subplots(), lr, train_loss, val_steps, val_loss)
    return figure


def summary_figure(
    curve: LRCurve,
    rule: str,
    smoothing: Smoothing,
    trained: LRRange,
    lr: Sequence[float],
    train_loss: Sequence[float],
    val_steps: Sequence[int],
    val_loss: Sequence[float],
    suggested: LRRange | None = None,
) -> Figure:
    """Return the chain in one picture: the range test with the range that was trained, and the
    training; 14 by 5.5 inches.

    ``suggested`` is the range that was handed on, where it is not what ``rule`` reads from the
    curve.
    """
    figure = Figure(figsize=(14, 5.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    answers = suggest_all(curve, smoothing)
    if suggested is not None:
        answers[rule] = suggested
    plots.curve_axes(left, curve, answers, rule, smoothing)
    bottom, top = left.get_ylim()
    left.hlines(
        top - 0.03 * (top - bottom),
        trained.min,
        trained.max,
        color="black",
        lw=4,
        label=f"trained: {trained}",
    )
    left.legend(fontsize=8, loc="lower left", framealpha=0.9)
    _training_axes(right, lr, train_loss, val_steps, val_loss)
    return figure


def study_figures(study: optuna.Study) -> dict[str, Figure]:
    """Return Optuna's pictures of a study, by file name: history, slice, importance.

    Importance needs two trials that completed with different values.
    """
    from optuna.visualization import matplotlib as drawn

    figures = {}
    # Optuna sets its own style for all figures after it.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # Optuna marks its matplotlib pictures as experimental.
        figures["history.png"] = drawn.plot_optimization_history(study)
        figures["loss_over_peak_lr.png"] = drawn.plot_slice(study)
        finished = [t for t in study.trials if t.value is not None and t.value < float("inf")]
        if len({trial.value for trial in finished}) > 1:
            figures["importance.png"] = drawn.plot_param_importances(study)
    for axes in figures.values():
        pyplot.close(axes.figure)  # drawn by pyplot, which keeps what it is not told to let go
    return {name: axes.figure for name, axes in figures.items()}


def _training_axes(
    axes: Axes,
    lr: Sequence[float],
    train_loss: Sequence[float],
    val_steps: Sequence[int],
    val_loss: Sequence[float],
) -> None:
    axes.plot(range(len(train_loss)), train_loss, color=TRAIN, lw=1, label="training loss")
    axes.plot(val_steps, val_loss, color=VAL, lw=2, marker="o", ms=3, label="validation loss")
    positive = all(value > 0 for value in [*train_loss, *val_loss])
    axes.set(xlabel="iteration", ylabel="loss", yscale="log" if positive else "linear")
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rate.plot(range(len(lr)), lr, color=LR, lw=1.5, label="learning rate")
    rate.set_ylabel("learning rate", color=LR)
    lines = [*axes.get_lines(), *rate.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="upper right")
    final = f", last validation loss {val_loss[-1]:.4g}" if val_loss else ""
    axes.set_title(f"Training: {len(train_loss)} iterations{final}", fontsize=10)
