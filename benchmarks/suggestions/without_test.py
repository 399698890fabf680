"""What people do without a range test: a fixed learning rate, or an optimizer that needs none."""

from __future__ import annotations

import pandas as pd

from benchmarks.suggestions.regrets import Problems, trained
from benchmarks.suggestions.trainings import recorded_without_lr
from benchmarks.suggestions.work import Work

__all__ = ["FIXED", "NO_LR", "without_test"]

FIXED = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""Optimizer -> the learning rate that people type, as the peak of one cycle."""
NO_LR = ("Prodigy", "schedule-free AdamW")


def without_test(work: Work, problems: Problems, seeds: int) -> pd.DataFrame:
    """Return the losses of these trainings; ``lr`` is NaN where there is none to choose."""
    keys = [(name, seed) for name in problems for seed in range(seeds)]
    fixed = [
        (name, seed, "SGD 0.1, Adam 0.001", FIXED[problems[name].optimizer]) for name, seed in keys
    ]
    columns = ["problem", "seed", "rule", "lr"]
    frames = [trained(work, problems, pd.DataFrame(fixed, columns=columns), False, "fixed rates")]
    for optimizer in NO_LR:
        calls = [(problems[name], seed, optimizer, problems[name].epochs) for name, seed in keys]
        records = work.run(recorded_without_lr, calls, f"trainings: {optimizer}")
        rows = [
            (*key, optimizer, float("nan"), record.final_loss, record.lowest_loss)
            for key, record in zip(keys, records, strict=True)
        ]
        frames.append(pd.DataFrame(rows, columns=[*columns, "loss", "kept_loss"]))
    return pd.concat(frames, ignore_index=True)
