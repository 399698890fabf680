"""Curves that fool rules: what each suggests, and what training at every learning rate gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

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
from lrrt_stage.charts import Chart, Line, Mark, Panel, limits

__all__ = ["SHOWN", "draw", "pictures"]

SHOWN = {
    "visits-mlp-adamw-256": "Noise",
    "diabetes-mlp-sgd-16": "Small batches",
    "patches-cnn_bn-sgd-128": "Batch norm",
}
"""Problem of the development half -> what in its curve misleads."""
COLORS = {
    "robust": "#0e8a7d",
    "article": "#7d3c98",
    "fastai minimum": "#b9770e",
    "fastai valley": "#2471a3",
    "torch-lr-finder": "#c0392b",
    "Lightning": "#555555",
}
"""Rules whose suggestions are marked."""


def pictures(
    work: Work, problems: Mapping[str, Problem], peers: list[str], folder: Path, seed: int = 0
) -> list[Path]:
    """Write a picture for each problem of :data:`SHOWN` into ``folder`` and return their paths."""
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
        chart = draw(f"{what}: {name}", measured[name, seed], peaks, regrets)
        paths.append(folder / f"{name}.png")
        chart.figure().savefig(paths[-1], dpi=90)
    return paths


def draw(title: str, curve: LRCurve, peaks: Mapping[str, float], regrets: pd.DataFrame) -> Chart:
    """Return the curve beside the regret of one-cycle trainings, with the suggested peaks.

    ``regrets`` has the columns ``lr`` and ``regret``.
    """
    valley = fit_unimodal(curve)
    losses = (
        Line(curve.lr, curve.loss, "loss of each batch", "#9db4c8", 1),
        Line(curve.lr, curve.probe_loss, "loss of the probe", "#1f4e79", 2),
        Line(curve.lr, valley.fit, "fitted valley", "#e67e22", 2, "dot"),
    )
    marks = tuple(
        Mark(peaks[rule], f"{rule}: {peaks[rule]:.2g}", color)
        for rule, color in COLORS.items()
        if rule in peaks
    )
    tested = Panel(
        "the range test", "learning rate", "loss", (*losses, *marks), xlog=True,
        ylim=limits(*(line.y for line in losses)),
    )  # fmt: skip
    cost = Line(regrets["lr"].to_numpy(), regrets["regret"].to_numpy(), "", "#222222", markers=True)
    bare = tuple(Mark(mark.x, "", mark.color) for mark in marks)
    trainings = Panel(
        "training at that peak", "peak learning rate", "regret", (cost, *bare), xlog=True,
        ylim=(-0.02, float(np.nanmax([0.3, min(1.02, 1.02 * regrets["regret"].max())]))),
    )  # fmt: skip
    return Chart(title, (tested, trainings), columns=2)
