"""Figures of the search for a peak learning rate."""

from __future__ import annotations

import warnings

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.visualization import matplotlib as drawn

__all__ = ["search_figures"]


def search_figures(optuna_study: optuna.Study) -> dict[str, Figure]:
    """Return Optuna's figures of a study, by file name: history and slice."""
    figures = {}
    # Optuna sets its own style for all figures after it.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # Optuna marks these functions as experimental.
        figures["history.png"] = drawn.plot_optimization_history(optuna_study)
        figures["loss_over_peak_lr.png"] = drawn.plot_slice(optuna_study)
    for ax in figures.values():
        pyplot.close(ax.figure)  # drawn by pyplot, which keeps every figure until it is closed
    return {name: ax.figure for name, ax in figures.items()}
