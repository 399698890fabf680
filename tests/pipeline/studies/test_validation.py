from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import LRCurve
from pipeline import RangeTestPlan, ValidationOptions
from pipeline.studies.validation import turning_lr


@pytest.fixture
def watching(measured, valley):
    """A function to an answer: training turns at 0.1, the full set and the sample where told."""

    def make(turn=1e-2, sample_turn=10**-1.8):
        def answer(job):
            where = {"full": turn, "sample": sample_turn}[job.labels["validation"]]
            return measured(job, replace(valley(0.1, 1e-4), val_loss=valley(where).loss))

        return answer

    return make


def test_turn_and_error_by_hand(found, watching):
    findings = found("validation", watching())
    # At a distance of d decades from the turn of the full set its loss is 1 + d, and the sample's
    # is off by 0.2 (but for the two iterations between the turns, at one of which it is equal).
    exponents = np.linspace(-6, 1, 71)
    expected = {
        "turning_lr": 10**-1.8,
        "full_turning_lr": 1e-2,
        "turn_apart_decades": 0.2,
        "sample_error": np.median(0.2 / (1 + np.abs(exponents + 2))),
        "sample_error_max": 0.2,
        "max_above_turn_decades": 0.0,
    }
    metrics = {name: findings.metrics[name] for name in expected}
    assert metrics == pytest.approx(expected, abs=1e-9)
    turn, off, maximum = findings.sentences
    assert "turns at 0.01 on the full set, and at 0.0158 on the sample." in turn
    assert "7.1% in the median of the iterations and 20.0% at most" in off
    assert "is 0.01, +0.00 decades from the turn" in maximum.replace("-0.00", "+0.00")
    assert "leave validation=none" in findings.advice
    rates = findings.tables["Learning rates"].set_index("where")["lr"]
    assert rates["validation turns, full set"] == pytest.approx(1e-2)
    assert rates["rule article"] == pytest.approx(1e-2)
    assert rates["rule minimum"] == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("turn", "text"), [(1e-3, "+1.00 decades from the turn"), (0.1, "-1.00 decades from the turn")]
)
def test_the_suggestion_is_set_against_the_turn(found, watching, turn, text):
    findings = found("validation", watching(turn))
    assert text in findings.sentences[2]
    assert ("Stay below 0.001" in findings.advice) == (turn == 1e-3)


def test_what_the_figure_shows(found, watching, lines):
    figure = found("validation", watching()).figures["validation"]
    train, full, sample, turn = lines(figure).values()
    assert train[1][0] == pytest.approx(1 + 5 + 0.4)
    assert full[0][np.argmin(full[1])] == pytest.approx(1e-2)
    assert sample[0][np.argmin(sample[1])] == pytest.approx(10**-1.8)
    assert turn[0][0] == pytest.approx(1e-2)
    (span,) = figure.axes[0].patches
    assert [span.get_x(), span.get_x() + span.get_width()] == pytest.approx([1e-4, 1e-2])


def test_the_tests_differ_in_validation_alone(study_of, watching):
    plan = replace(RangeTestPlan(), validation=ValidationOptions("none", 17, 33))
    study = study_of("validation", watching(), plan=plan)
    study.findings()
    jobs = study.run.jobs
    assert [job.plan.validation for job in jobs] == [
        ValidationOptions("sample", 17, 33),
        ValidationOptions("full", 17, 33),
    ]
    assert len({job.name for job in jobs}) == 2
    assert all(job.task == study.task for job in jobs)


@pytest.mark.parametrize("missing", ["sample", "full"])
def test_a_setting_whose_test_failed_is_named(found, watching, complains, missing):
    def answer(job):
        return "broken" if job.labels["validation"] == missing else watching()(job)

    with complains(f"the test with validation={missing} has no curve", "run the study again"):
        found("validation", answer)


def test_no_suggestion_is_told(found, measured, watching, flat):
    def answer(job):
        curve = watching()(job).curve
        return measured(job, replace(curve, loss=flat.loss))

    findings = found("validation", answer)
    assert findings.sentences[2].startswith("No maximum is suggested: the loss never fell")
    assert math.isnan(findings.metrics["max_above_turn_decades"])
    assert "nan" not in " ".join(findings.sentences)


def test_the_turn_passes_over_what_is_not_finite(complains):
    lr = [0.1, 1.0, 10.0]
    curve = LRCurve(lr, [1, 1, 1], val_loss=[math.nan, 2.0, -math.inf])
    assert turning_lr(curve) == 1.0
    with complains("none of 3 validation losses is finite"):
        turning_lr(LRCurve(lr, [1, 1, 1], val_loss=[math.nan] * 3))


def test_real_tests_on_the_digits(real):
    findings = real("validation", iterations=60)
    metrics = findings.metrics
    assert 1e-7 <= metrics["full_turning_lr"] <= 100
    assert 0 <= metrics["sample_error"] <= metrics["sample_error_max"]


def test_a_loss_that_does_not_turn_within_the_test_is_told(found, watching, measured, valley):
    def falling(job):
        curve = watching()(job).curve
        if job.labels["validation"] == "full":
            curve = replace(curve, val_loss=np.linspace(3, 1, len(curve)))
        return measured(job, curve)

    findings = found("validation", falling)
    assert "turns nowhere within the test on the full set" in findings.sentences[0]
    assert math.isnan(findings.metrics["full_turning_lr"])
    assert math.isnan(findings.metrics["turn_apart_decades"])
    assert "lr_end" in findings.advice
    for figure in findings.figures.values():
        figure.draw_without_rendering()
