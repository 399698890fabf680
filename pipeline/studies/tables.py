"""A study's tests as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.jobs.jobs import (
    FailedJob,
    JobResult,
    RangeTestJob,
    RangeTestResult,
    TrainingResult,
)

__all__ = ["study_frame", "tests_frame", "tests_table"]


def tests_table(tests: Sequence[RangeTestResult]) -> pd.DataFrame:
    """Return a row per test: what tells it from the others, how it ended, what it suggests."""
    return pd.DataFrame([{"test": t.job.name, **t.job.labels, **_measured(t)} for t in tests])


def _measured(test: RangeTestResult) -> dict[str, Any]:
    found, confidence = test.range, test.reading.chosen.confidence
    return {
        "iterations": len(test.curve),
        "stop": test.curve.stop,
        "lr_min": found.min if found else None,
        "lr_max": found.max if found else None,
        "lr_max_low": confidence.low,
        "lr_max_high": confidence.high,
        "verdict": str(confidence.verdict),
    }


def study_frame(results: Sequence[RangeTestResult | TrainingResult]) -> pd.DataFrame:
    """Return a row per test or training, and iteration.

    The columns are ``test``, what tells the test from the others, ``iteration``, ``lr``,
    ``loss``, ``smoothed_loss``, and the validation losses where they were taken.
    """
    frames = []
    for result in results:
        if isinstance(result, RangeTestResult):
            frame = result.curve.to_frame(result.reading.smoothing)
        else:
            history = result.history
            frame = pd.DataFrame({"lr": history.lr, "loss": history.train_loss})
            frame = frame.rename_axis("iteration").reset_index()
        names = {"test": result.job.name, **result.job.labels}
        frames.append(frame.assign(**names)[[*names, *frame.columns]])
    return pd.concat(frames, ignore_index=True)


def tests_frame(results: Sequence[JobResult]) -> pd.DataFrame:
    """Return a row per range test: seeds, how it ended, every rule's maximum, and its error."""
    rows = []
    for result in results:
        if not isinstance(result.job, RangeTestJob):
            continue
        task, error = result.job.task, result.reason if isinstance(result, FailedJob) else ""
        row = {"test": result.job.name, **result.job.labels, "error": error}
        row |= {"seed": task.seed, "data_seed": task.data_seed, "batch_size": task.batch_size}
        if isinstance(result, RangeTestResult):
            row |= {**_measured(result), "seconds": result.seconds}
            row |= {
                f"suggestion.{name}": suggestion.range.max
                for name, suggestion in result.reading.suggestions.items()
                if suggestion.range is not None
            }
        rows.append(row)
    return pd.DataFrame(rows)
