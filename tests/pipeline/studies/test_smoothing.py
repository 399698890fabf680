from __future__ import annotations

import math

import numpy as np
import pytest

from lrrt_stage import AVERAGES, LRCurve, Smoothing, SuggestionOptions
from lrrt_stage.charts import Line, Mark
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


def test_lag_and_age_of_straight_sides_by_hand(v_shaped):
    # Long after the start the average of a V with sides of ±1 an iteration, m iterations past the
    # turn, is m - a + 2 a β^m with a = β / (1 - β): least at the first m with β^(m + 1) < 1/2,
    # which is 1 for 0.6 and 3 for 0.8. The mean age is a: 1.5 and 4 iterations.
    findings = v_shaped()
    table = findings.tables["Averages"].set_index(["average", "beta"])
    assert len(table) == 6
    for average in AVERAGES:
        slow, fast = table.loc[(average, 0.8)], table.loc[(average, 0.6)]
        assert (fast["lag_decades"], slow["lag_decades"]) == pytest.approx((0.1, 0.3))
        assert (fast["age_decades"], slow["age_decades"]) == pytest.approx((0.15, 0.4), abs=1e-3)
        assert (fast["lr_max"], slow["lr_max"]) == pytest.approx((10**-1.9, 10**-1.7))
        assert findings.metrics[f"lag_decades.{average}.0.8"] == pytest.approx(0.3)
    assert findings.metrics["lag_decades"] == pytest.approx(0.3)
    assert findings.metrics["age_decades"] == pytest.approx(0.4, abs=1e-3)
    assert findings.metrics["lr_max_moved_decades"] == pytest.approx(0.2)
    assert findings.metrics["lr_min_moved_decades"] == pytest.approx(
        math.log10(table["lr_min"].max() / table["lr_min"].min())
    )
    assert (
        "0.3 decades of LR after a lag-free average does. The losses in it" in findings.sentences[0]
    )
    assert "were taken 0.4 decades below" in findings.sentences[0]
    assert (
        "Over all 6 averages that have a suggestion (article), the maximum moves by 0.2"
        in (findings.sentences[1])
    )


def test_the_age_is_measured_on_the_ramp_that_was_run(found, measured):
    # On a linear ramp 4 iterations before the LR k are at k - 4.
    lr = np.arange(1.0, 101.0)
    curve = LRCurve(lr, 1 + np.abs(lr - 60))
    findings = found("smoothing", lambda job: measured(job, curve), plan=PLAN, betas=BETAS)
    at_minimum = 63.0  # three iterations late, as above
    assert findings.metrics["age_decades"] == pytest.approx(
        math.log10(at_minimum / (at_minimum - 4)), rel=1e-3
    )


def test_every_beta_has_a_panel_with_the_raw_loss_the_averages_and_their_maxima(v_shaped, items):
    charts = v_shaped().charts
    chart = charts["averages"]
    assert [panel.title for panel in chart.panels] == ["β = 0.6", "β = 0.8"]
    raw, *averages = items(chart, Line, panel=1)
    assert raw.y[0] == pytest.approx(6)
    assert [line.name for line in averages] == list(AVERAGES)
    # Corrected: (0.8 · 6 + 5.9) / 1.8; from the first: 0.8 · 6 + 0.2 · 5.9; biased: 0.2 of 6.
    by_name = {line.name: line.y for line in averages}
    assert by_name["corrected"][1] == pytest.approx((0.8 * 6 + 5.9) / 1.8)
    assert by_name["from-first"][1] == pytest.approx(0.8 * 6 + 0.2 * 5.9)
    assert by_name["biased"][0] == pytest.approx(1.2)
    assert [mark.x for mark in items(chart, Mark, panel=1)] == pytest.approx([10**-1.7] * 3)
    lags = items(charts["lags"], Line)
    assert [line.name for line in lags] == list(AVERAGES)
    assert lags[0].x.tolist() == [0.6, 0.8]
    assert lags[0].y == pytest.approx([0.1, 0.3])
    assert [panel.title for panel in charts["lags"].panels][2:] == [
        "Suggested maximum",
        "Suggested minimum",
    ]


def test_an_average_without_an_answer_says_why(v_shaped):
    # With β = 0.98 the biased average, which starts near zero, still rises at the turn, which is
    # 20 iterations in: it never falls.
    biased = RangeTestPlan(smoothing=Smoothing("biased", 0.98), suggestion=ARTICLE)
    findings = v_shaped(biased, turn=1e-4)
    assert math.isnan(findings.metrics["lag_decades"])
    assert findings.sentences[0].startswith(
        "The biased average with β = 0.98 has no lag that could be measured: the loss never fell"
    )
    assert "Over all 6 averages" in findings.sentences[1]

    table = v_shaped(biased, turn=1e-4, betas="0.6,0.98").tables["Averages"]
    row = table[(table["average"] == "biased") & (table["beta"] == 0.98)].iloc[0]
    assert math.isnan(row["lr_max"])
    assert row["reason"].startswith("the loss never fell")


def test_no_answer_at_all_is_told_and_drawn(found, measured, flat):
    findings = found("smoothing", lambda job: measured(job, flat), betas=BETAS)
    assert math.isnan(findings.metrics["lr_max_moved_decades"])
    assert findings.sentences[1].startswith(
        "Of 6 averages none has a suggestion (article), too few to compare. "
        "Another says: the loss never fell"
    )
    for chart in findings.charts.values():
        chart.figure()


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
        ("0.9,1", ("beta=1.0", "[0, 1)")),
        ("-0.1,0.9", ("beta=-0.1",)),
        ("nan", ("beta=nan",)),
        ("0.9,high", ("betas='0.9,high'", "0.9,0.95,0.98,0.99")),
        ("", ("betas=''",)),
    ],
)
def test_betas_that_are_none_are_refused(refused, betas, words):
    refused("smoothing", *words, betas=betas)


def test_a_real_test_on_the_digits(real):
    findings = real("smoothing", iterations=60, betas="0.5,0.9")
    table = findings.tables["Averages"].set_index(["average", "beta"])
    assert len(table) == 6
    corrected = table["lag_decades"]["corrected"]
    assert corrected[0.9] >= corrected[0.5] >= 0
