from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import LRCurve, LRRange
from pipeline import TrainOptions
from pipeline.jobs.jobs import FailedJob, TrainingJob
from pipeline.studies import study_frame, tables


def test_the_tidy_table_has_a_row_per_test_and_iteration(measured, job):
    def test(name, loss, **labels):
        curve = LRCurve([0.1, 1.0, 10.0][: len(loss)], loss)
        return measured(replace(job(), name=name, labels=labels), curve)

    frame = study_frame(
        [test("a", [3.0, 2.0, 4.0], group="x"), test("b", [3.0, math.nan], group="y", step=2)]
    )
    assert frame["test"].tolist() == ["a"] * 3 + ["b"] * 2
    assert frame["group"].tolist() == ["x"] * 3 + ["y"] * 2
    assert frame["iteration"].tolist() == [0, 1, 2, 0, 1]
    assert frame["lr"].tolist() == [0.1, 1.0, 10.0, 0.1, 1.0]
    assert np.array_equal(frame["loss"], [3, 2, 4, 3, math.nan], equal_nan=True)
    # The plan's average, which here is the loss itself.
    assert np.array_equal(frame["smoothed_loss"], frame["loss"], equal_nan=True)
    assert np.array_equal(frame["step"], [math.nan] * 3 + [2] * 2, equal_nan=True)


def test_validation_losses_are_in_it_where_they_were_taken(measured, job):
    watched = LRCurve([0.1, 1.0], [3.0, 2.0], val_loss=[4.0, 5.0], full_val_loss=[math.nan, 6.0])
    frame = study_frame([measured(job(), LRCurve([0.1], [3.0])), measured(job(), watched)])
    assert np.array_equal(frame["val_loss"], [math.nan, 4, 5], equal_nan=True)
    assert np.array_equal(frame["full_val_loss"], [math.nan, math.nan, 6], equal_nan=True)


def test_a_row_per_range_test_also_of_those_that_failed(measured, suggesting, job, flat):
    good = suggesting(job(3, 4, batch_size=8), 1e-4, 1e-2)
    silent, broken = measured(job(5), flat, seconds=2.5), replace(job(6), labels={"group": "x"})
    training = TrainingJob("t", job().task, LRRange(0.1, 1.0), TrainOptions())
    frame = tables.tests_frame(
        [
            good,
            silent,
            FailedJob(broken, "out of memory"),
            FailedJob(training, "a training that failed"),
        ]
    ).set_index("test")

    assert list(frame.index) == [good.job.name, silent.job.name, broken.name]
    first, second, third = (frame.iloc[index] for index in range(3))
    assert (first["seed"], first["data_seed"], first["batch_size"]) == (3, 4, 8)
    assert (first["lr_min"], first["lr_max"]) == pytest.approx((1e-4, 1e-2))
    assert (first["iterations"], first["stop"], first["error"]) == (71, "completed", "")
    assert first["suggestion.article"] == pytest.approx(1e-2)
    assert first["suggestion.minimum"] == pytest.approx(1e-2)
    assert math.isnan(second["lr_max"])
    assert math.isnan(second["suggestion.article"])
    assert second["seconds"] == 2.5
    assert (third["error"], third["seed"], third["group"]) == ("out of memory", 6, "x")
    assert math.isnan(third["iterations"])
