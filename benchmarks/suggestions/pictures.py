"""Curves that fool rules: what each suggests, and what training at every learning rate gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.suggestions import scores
from benchmarks.suggestions.problems import Problem
from benchmarks.suggestions.regrets import (
    GRID,
    curves,
    grid_references,
    suggested,
    suggested_by_peers,
    trained,
)
from benchmarks.suggestions.work import Work
from lrrt_stage import LRCurve, fit_unimodal
from lrrt_stage.plots import drawing
from lrrt_stage.plots.curve_plot import LR_LABEL

__all__ = ["SHOWN", "draw", "write_figures"]

SHOWN = {
    "visits-mlp-adamw-256": "Noise",
    "diabetes-mlp-sgd-16": "Small batches",
    "tuned-classes-cnn-adam-64": "A new head",
}
"""Problem of the development half -> what in its curve misleads."""
MARKS = {
    "robust": (drawing.GREEN, "-"),
    "article": (drawing.PURPLE, "--"),
    "fastai minimum": (drawing.ORANGE, "-."),
    "fastai valley": (drawing.SKY, "--"),
    "torch-lr-finder": (drawing.VERMILION, "-."),
    "Lightning": (drawing.GREY, "--"),
}
"""Rules whose suggestions are marked."""


def write_figures(
    work: Work, problems: Mapping[str, Problem], peers: list[str], folder: Path, seed: int = 0
) -> list[Path]:
    """Write a figure for each problem of :data:`SHOWN` into ``folder`` and return their paths."""
    shown = {name: problems[name] for name in SHOWN}
    seeds = seed + 1
    measured = curves(work, shown, seeds)
    found = pd.concat([suggested(measured), suggested_by_peers(work, shown, seeds, peers)])
    reference = grid_references(work, shown, seeds, tuple(GRID.tolist()))
    keys = pd.DataFrame([(name, seed) for name in shown], columns=scores.KEYS)
    tried = keys.merge(pd.DataFrame({"lr": GRID}), how="cross")
    grid = scores.scored(trained(work, shown, tried, False, "grid"), reference)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, what in SHOWN.items():
        here = (found["problem"] == name) & (found["seed"] == seed)
        peaks = found[here].dropna().set_index("rule")["lr"].to_dict()
        regrets = grid.loc[grid["problem"] == name, ["lr", "regret"]]
        figure = draw(f"{what}: {name}", measured[name, seed], peaks, regrets)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=90)
    return paths


def draw(title: str, curve: LRCurve, peaks: Mapping[str, float], regrets: pd.DataFrame) -> Figure:
    """Return the curve beside the regret of one-cycle trainings, with the suggested peaks.

    ``regrets`` has the columns ``lr`` and ``regret``.
    """
    figure, (tested, trained_at) = drawing.new_figure(columns=2, width=6.0)
    fit, probed = fit_unimodal(curve), curve.probed
    fitted = fit.fit - fit.unspecific
    tested.plot(curve.lr, curve.loss, color=drawing.PALE, lw=1, label="loss of each batch")
    tested.plot(probed.lr, probed.probe_loss, color=drawing.BLUE, lw=2, label="loss of the probe")
    if fit.unspecific.any():
        label = "loss of the mean output"
        tested.plot(probed.lr, probed.probe_baseline, color=drawing.GREY, lw=1.2, label=label)
    tested.plot(fit.lr, fitted, color=drawing.BLACK, lw=2, ls=":", label="unimodal fit")
    drawing.label_axes(tested, "The range test", LR_LABEL, "loss", log="x")
    tested.set_ylim(*drawing.loss_limits(curve.loss, curve.probe_loss, fitted))
    trained_at.plot(regrets["lr"], regrets["regret"], "o-", color=drawing.BLACK, ms=4)
    drawing.label_axes(trained_at, "Training at that peak", "peak learning rate", "regret", log="x")
    worst = min(1.02, 1.02 * regrets["regret"].max())
    trained_at.set_ylim(-0.02, float(np.nanmax([0.3, worst])))
    for rule, (color, style) in MARKS.items():
        if rule in peaks:
            label = f"{rule}: {peaks[rule]:.2g}"
            tested.axvline(peaks[rule], color=color, ls=style, lw=1.6, label=label)
            trained_at.axvline(peaks[rule], color=color, ls=style, lw=1.6)
    drawing.legend_below(tested)
    return drawing.finished(figure, title)
