"""A study's tests as tidy tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pipeline.jobs.jobs import RangeTestJob, RangeTestResult, TrainingResult
from pipeline.jobs.pool import JobResult

__all__ = ["study_frame", "tests_frame"]


def study_frame(results: Sequence[RangeTestResult | TrainingResult]) -> pd.DataFrame:
    """Return a row per test or training, and iteration.

    The columns are ``test``, what tells the test from the others, ``iteration``, ``lr``,
    ``loss``, ``smoothed_loss``, and the validation losses where they were taken.
    """
    frames = []
    for each in results:
        if isinstance(each, TrainingResult):
            frame = pd.DataFrame({"lr": each.lr, "loss": each.train_loss})
            frame = frame.rename_axis("iteration").reset_index()
        else:
            frame = each.curve.to_frame(each.job.plan.smoothing)
        names = {"test": each.job.name, **each.job.labels}
        frames.append(frame.assign(**names)[[*names, *frame.columns]])
    return pd.concat(frames, ignore_index=True)


def tests_frame(outcomes: Sequence[JobResult]) -> pd.DataFrame:
    """Return a row per range test: seeds, how it ended, every rule's maximum, and its error."""
    rows = []
    for outcome in outcomes:
        if not isinstance(outcome.job, RangeTestJob):
            continue
        result = outcome.result
        row = {"test": outcome.job.name, **outcome.job.labels, "error": outcome.error}
        task = outcome.job.task
        row |= {"seed": task.seed, "data_seed": task.data_seed, "batch_size": task.batch_size}
        if isinstance(result, RangeTestResult):
            lr_range = result.range
            row |= {
                "iterations": len(result.curve),
                "stop": result.curve.stop,
                "seconds": result.seconds,
                "lr_min": lr_range.min if lr_range else None,
                "lr_max": lr_range.max if lr_range else None,
            }
            row |= {
                f"suggestion.{name}": suggestion.range.max
                for name, suggestion in result.reading.suggestions.items()
                if suggestion.range is not None
            }
        rows.append(row)
    return pd.DataFrame(rows)
