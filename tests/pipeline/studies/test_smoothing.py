from __future__ import annotations

import math

import numpy as np
import pytest

from lrrt_stage import AVERAGES, LRCurve, Smoothing, SuggestionOptions
from pipeline import RangeTestPlan

BETAS = "0.6,0.8"
ARTICLE = SuggestionOptions("article")
PLAN = RangeTestPlan(smoothing=Smoothing("corrected", 0.8), suggestion=ARTICLE)


@pytest.fixture
def v_shaped(found, measured, valley):
    """A study of one V with its turn at 0.1, fifty iterations in, ten to a decade."""

    def make(plan=PLAN, turn=0.1, betas=BETAS, **series):
        answer = lambda job: measured(job, valley(turn, **series))  # noqa: E731
        return found("smoothing", answer, plan=plan, betas=betas)

    return make


def test_the_lag_of_straight_sides_by_hand(v_shaped):
    # Long after the start the average of a V with sides of ±1 an iteration, m iterations past the
    # turn, is m - a + 2 a β^m with a = β / (1 - β): least at the first m with β^(m + 1) < 1/2,
    # which is 1 for 0.6 and 3 for 0.8.
    findings = v_shaped()
    table = findings.tables["Averages"].set_index(["average", "beta"])
    assert len(table) == 6
    for average in AVERAGES:
        slow, fast = table.loc[(average, 0.8)], table.loc[(average, 0.6)]
        assert (fast["lag_decades"], slow["lag_decades"]) == pytest.approx((0.1, 0.3))
        assert (fast["lr_max"], slow["lr_max"]) == pytest.approx((10**-1.9, 10**-1.7))
    assert findings.metrics["lag_decades"] == pytest.approx(0.3)
    assert findings.metrics["lr_max_moved_decades"] == pytest.approx(0.2)
    assert findings.metrics["lr_min_moved_decades"] == pytest.approx(
        math.log10(table["lr_min"].max() / table["lr_min"].min())
    )
    assert "0.3 decades" in findings.sentences[0]
    assert "the 6 of 6 averages" in findings.sentences[1]


def test_every_beta_has_axes_with_the_raw_loss_the_averages_and_their_maxima(v_shaped, lines):
    figures = v_shaped().figures
    averages = figures["averages"]
    assert ["β = 0.6" in averages.axes[0].get_title(), len(averages.axes)] == [True, 2]
    shown = lines(averages, 1)
    assert shown["loss of each batch"][1][0] == pytest.approx(6)
    # Corrected: (0.8 · 6 + 5.9) / 1.8; from the first: 0.8 · 6 + 0.2 · 5.9; biased: 0.2 of 6.
    assert shown["corrected"][1][1] == pytest.approx((0.8 * 6 + 5.9) / 1.8)
    assert shown["from-first"][1][1] == pytest.approx(0.8 * 6 + 0.2 * 5.9)
    assert shown["biased"][1][0] == pytest.approx(1.2)
    maxima = [x for x in averages.axes[1].get_lines() if len(x.get_xdata()) == 2]
    assert [line.get_xdata()[0] for line in maxima] == pytest.approx([10**-1.7] * 3)


def test_what_to_do_depends_on_the_rule_and_on_how_far_the_maximum_moves(v_shaped):
    assert "Keep the average" in v_shaped().advice  # moved by 0.2 decades
    assert "smallest β" in v_shaped(betas="0,0.9").advice
    robust = RangeTestPlan(smoothing=Smoothing("corrected", 0.8))
    assert "does not depend on β" in v_shaped(robust).advice


def test_an_average_without_an_answer_says_why(v_shaped):
    # With β = 0.98 the biased average, which starts near zero, still rises at the turn, which is
    # 20 iterations in: it never falls.
    biased = RangeTestPlan(smoothing=Smoothing("biased", 0.98), suggestion=ARTICLE)
    findings = v_shaped(biased, turn=1e-4)
    assert math.isnan(findings.metrics["lag_decades"])
    assert "no lag that could be measured: the loss never fell" in findings.sentences[0]

    table = v_shaped(biased, turn=1e-4, betas="0.6,0.98").tables["Averages"]
    row = table[(table["average"] == "biased") & (table["beta"] == 0.98)].iloc[0]
    assert math.isnan(row["lr_max"])
    assert row["reason"].startswith("the loss never fell")


def test_no_answer_at_all_is_told_and_drawn(found, measured, flat):
    findings = found("smoothing", lambda job: measured(job, flat), betas=BETAS)
    assert math.isnan(findings.metrics["lr_max_moved_decades"])
    assert "none" in findings.sentences[1]
    assert "the loss never fell" in findings.sentences[1]
    assert "check" in findings.advice or "Look" in findings.advice
    for figure in findings.figures.values():
        figure.draw_without_rendering()


def test_a_curve_too_short_to_read_is_told(found, measured, valley, complains):
    short = lambda job: measured(job, valley(0.1)[:5])  # noqa: E731
    assert "too few points" in found("smoothing", short, betas=BETAS).sentences[0]
    with complains("none of 1 tests has 2 finite losses"):
        found("smoothing", lambda job: measured(job, valley(0.1)[:1]), betas=BETAS)


def test_what_ended_the_curve_is_in_the_reason(found, measured):
    curve = LRCurve(10.0 ** np.arange(-6, 0), [3.0, 2, 2, 2, 2, math.nan], stop="non-finite")
    table = found("smoothing", lambda job: measured(job, curve), betas=BETAS).tables["Averages"]
    assert "until one was nan" in table["reason"][0]


def test_a_test_that_failed_is_an_error(found, complains):
    with complains("all 1 range tests failed; the first: broken"):
        found("smoothing", lambda job: "broken")


@pytest.mark.parametrize(
    ("betas", "words"),
    [
        ("0.9,1", ("beta=1.0",)),
        ("-0.1,0.9", ("beta=-0.1",)),
        ("nan", ("beta=nan",)),
        ("0.9,high", ("betas='0.9,high'", "0.9,0.95,0.98,0.99")),
        ("", ("betas=''",)),
    ],
)
def test_betas_that_are_none_are_refused(refused, betas, words):
    refused("smoothing", *words, betas=betas)
