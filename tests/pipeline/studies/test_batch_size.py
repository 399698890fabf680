from __future__ import annotations

import math

import numpy as np
import pytest

from lrrt_stage import LRCurve, Smoothing
from pipeline import RangeTestPlan
from pipeline.studies.batch_size import _verdict

SIZES = "10,100,1000"


def scaling(suggesting, power):
    """Answer with a maximum of 0.001 (batch / 10)^power, a tenth of a decade more or less."""

    def answer(job):
        decades = power * (np.log10(job.task.batch_size) - 1) + 0.1 * (2 * job.task.data_seed - 1)
        high = 1e-3 * 10**decades
        return suggesting(job, high / 10, high)

    return answer


def test_the_slope_and_its_interval_by_hand(found, suggesting):
    findings = found("batch-size", scaling(suggesting, 1), batch_sizes=SIZES, tests=2)
    # Six residuals of 0.1; Σ (x - mean)² = 4 decades²; t with 4 degrees of freedom is 2.132.
    half = 2.132 * math.sqrt(6 * 0.01 / 4 / 4)
    metrics = findings.metrics
    assert metrics["slope"] == pytest.approx(1)
    assert metrics["slope_low"] == pytest.approx(1 - half, abs=1e-4)
    assert metrics["slope_high"] == pytest.approx(1 + half, abs=1e-4)
    assert "to the power 1.00 (90 % interval 0.87 to 1.13)" in findings.sentences[0]
    table = findings.tables["Batch sizes (medians)"].set_index("batch_size")
    assert table["lr_max"].tolist() == pytest.approx(
        [np.mean([k * 10**-0.1, k * 10**0.1]) for k in (1e-3, 1e-2, 1e-1)]
    )


@pytest.mark.parametrize(("power", "text"), [(-0.5, "power -0.50"), (0, "power 0.00")])
def test_a_slope_that_falls_or_is_none(found, suggesting, power, text):
    findings = found("batch-size", scaling(suggesting, power), batch_sizes=SIZES, tests=2)
    assert findings.metrics["slope"] == pytest.approx(power, abs=1e-9)
    assert text in findings.sentences[0]


def test_how_far_the_loss_falls_by_hand(found, suggesting, measured, valley):
    # A V falls from its plateau, the median of the first seven losses at 10^-5.7, to its turn:
    # a decade more with every tenfold of the batch, log10 2 = 0.301 with every doubling.
    def answer(job):
        return measured(job, valley(1e-3 * job.task.batch_size))

    findings = found("batch-size", answer, batch_sizes=SIZES, tests=1)
    table = findings.tables["Batch sizes (medians)"]
    assert table["fall_smoothed"].tolist() == pytest.approx([3.7, 4.7, 5.7])
    assert findings.metrics["smoothed_fall_per_doubling"] == pytest.approx(math.log10(2))
    assert findings.metrics["lag_free_fall_per_doubling"] == pytest.approx(math.log10(2), abs=1e-3)
    assert "+0.30 for the smoothed loss, and by +0.30 for the lag-free" in findings.sentences[1]

    def equal(job):
        high = 1e-2 if job.task.batch_size == 1000 else 1e-3
        test = suggesting(job, 1e-5, high)
        return measured(job, LRCurve(test.curve.lr, np.clip(test.curve.loss, 2.5, 4)))

    findings = found("batch-size", equal, batch_sizes=SIZES, tests=1)
    assert "by +0.00 for the smoothed loss" in findings.sentences[1].replace("-0.00", "+0.00")


def test_the_lag_free_loss_shows_that_the_smaller_descent_is_smoothing(found, measured):
    # All fall from 4 to 1 and stay there for 0.8 decades, a larger batch within fewer decades:
    # its average, which is up to 20 iterations behind, falls less, the loss itself does not.
    x = np.linspace(-6, 1, 141)

    def answer(job):
        width = 3.0 / np.log10(job.task.batch_size)
        fall = np.clip((x + 4) / width, 0, 1)
        rise = np.clip(x + 4 - width - 0.8, 0, None) * 20
        return measured(job, LRCurve(10**x, 4 - 3 * fall + rise))

    plan = RangeTestPlan(smoothing=Smoothing("corrected", 0.95))
    metrics = found("batch-size", answer, batch_sizes=SIZES, tests=1, plan=plan).metrics
    assert metrics["smoothed_fall_per_doubling"] < -0.05
    assert metrics["lag_free_fall_per_doubling"] == pytest.approx(0, abs=0.01)


def test_the_biased_average_falls_as_far_as_the_corrected_one(found, measured, valley):
    def answer(job):
        return measured(job, valley(1e-3 * job.task.batch_size))

    tables = [
        found(
            "batch-size",
            answer,
            batch_sizes=SIZES,
            tests=1,
            plan=RangeTestPlan(smoothing=Smoothing(average, 0.6)),
        ).tables["Batch sizes (medians)"]
        for average in ("biased", "corrected")
    ]
    assert tables[0]["fall_smoothed"].tolist() == tables[1]["fall_smoothed"].tolist()


def test_what_the_figures_show(found, suggesting, lines):
    findings = found("batch-size", scaling(suggesting, 1), batch_sizes=SIZES, tests=2)
    for panel in (0, 1):
        shown = lines(findings.figures["curves"], panel)
        assert list(shown) == [f"batch size {size}" for size in (10, 100, 1000)]
    tests, fitted, linear, root = lines(findings.figures["scaling"]).values()
    assert tests[0].tolist() == [10, 10, 100, 100, 1000, 1000]
    assert fitted[1] == pytest.approx([1e-3, 1e-1])
    assert linear[1] == pytest.approx([1e-3, 1e-1])
    assert root[1] == pytest.approx([10**-2.5, 10**-1.5])
    (ax,) = findings.figures["scaling"].axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xticks().tolist() == [10, 100, 1000]
    assert "by 2;" in findings.advice


def test_the_weights_are_the_same_in_all_tests(study_of, suggesting):
    study = study_of("batch-size", scaling(suggesting, 1), batch_sizes="100,10,10", tests=2)
    study.findings()
    tasks = [job.task for job in study.run.jobs]
    assert [(t.seed, t.data_seed, t.batch_size) for t in tasks] == [
        (0, 0, 10),
        (0, 1, 10),
        (0, 0, 100),
        (0, 1, 100),
    ]
    assert len({job.name for job in study.run.jobs}) == 4


def test_two_tests_have_a_slope_without_an_interval(found, suggesting):
    findings = found("batch-size", scaling(suggesting, 0.5), batch_sizes="10,1000", tests=1)
    assert findings.metrics["slope"] == pytest.approx(0.5)
    assert math.isnan(findings.metrics["slope_low"])
    assert "nan" not in " ".join(findings.sentences)


def test_a_size_whose_tests_failed_or_have_no_answer_is_left_out(found, suggesting, measured, flat):
    def answer(job):
        if job.task.batch_size == 10:
            return "broken"
        if job.task.batch_size == 20:
            return measured(job, flat)
        if job.task.batch_size == 50:
            return measured(job, LRCurve([1e-6], [math.nan], stop="non-finite"))
        return scaling(suggesting, 1)(job)

    findings = found("batch-size", answer, batch_sizes="10,20,50,100,1000", tests=2)
    assert findings.metrics["slope"] == pytest.approx(1)
    assert "4 of them gave no suggestion" in findings.advice
    table = findings.tables["Batch sizes (medians)"].set_index("batch_size")
    assert list(table.index) == [20, 100, 1000]
    assert math.isnan(table.loc[20, "lr_max"])


def test_one_size_with_an_answer_has_no_slope(found, suggesting, measured, flat, complains):
    def answer(job):
        return measured(job, flat) if job.task.batch_size > 10 else scaling(suggesting, 1)(job)

    with complains("only the tests of batch size 10 have a suggestion", "two sizes are needed"):
        found("batch-size", answer, batch_sizes=SIZES, tests=2)
    with complains("0 of 6 tests", "the loss never fell"):
        found("batch-size", lambda job: measured(job, flat), batch_sizes=SIZES, tests=2)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ("16,many", ("batch_sizes='16,many'", "16,32,64,128,256")),
        ("16,32.5", ("batch_sizes='16,32.5'",)),
        ("16", ("batch_sizes='16'", "two or more")),
        ("16,16", ("batch_sizes='16,16'", "two or more")),
        ("0,16", ("batch_size=0", "at least 1")),
    ],
)
def test_sizes_that_cannot_be_are_refused(refused, sizes, words):
    refused("batch-size", *words, batch_sizes=sizes)


@pytest.mark.parametrize(
    ("smoothed", "free", "verdict"),
    [
        (-0.2, 0.01, "for the most part an artefact"),
        (-0.2, -0.15, "not smoothing's alone"),
        (0.1, 0.2, "is not seen here"),
    ],
)
def test_the_verdict_on_the_descent_depends_on_both_slopes(smoothed, free, verdict):
    assert verdict in _verdict(smoothed, free)
