from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import LRCurve, Smoothing, SuggestionOptions
from pipeline import RangeTestPlan, Task

RAW = RangeTestPlan(smoothing=Smoothing("corrected", 0.0), suggestion=SuggestionOptions("article"))
THREE = [(1e-4, 1e-2), (1e-3, 1e-1), (1e-5, 1e-4)]
"""The first two share one of their three decades; each of them has nothing with the third."""


def each_of(ranges, suggesting):
    return lambda job: suggesting(job, *ranges[job.labels["seed"]])


def test_the_spread_of_three_initialisations_by_hand(found, suggesting):
    findings = found("initializations", each_of(THREE, suggesting), tests=3)

    # Quantiles of three values lie at the places 0.2, 1 and 1.8 of 0 … 2; the quartiles of
    # log10(max) = -4, -2, -1 are -3 and -1.5.
    expected = {
        "tests": 3,
        "without_suggestion": 0,
        "min_median": 1e-4,
        "min_q10": 1e-5 + 0.2 * 9e-5,
        "min_q90": 1e-4 + 0.8 * 9e-4,
        "max_median": 1e-2,
        "max_q10": 1e-4 + 0.2 * 9.9e-3,
        "max_q90": 1e-2 + 0.8 * 9e-2,
        "max_iqr_decades": 1.5,
        "share_disjoint": 2 / 3,
        "mean_overlap": 1 / 9,
        "clear_tests": 3,
        # 0.01 is inside the first two ranges; 0.1 inside the second alone.
        "covered_max": 1e-2,
        "covered_tests": 2,
        "covered_share": 2 / 3,
    }
    assert findings.metrics == pytest.approx(expected)
    assert "0.0001 to 0.01" in findings.sentences[0]
    assert "between 0.00208 and 0.082, a factor of 39.4." in findings.sentences[0]
    assert "67%" in findings.sentences[1]
    assert "11%" in findings.sentences[1]
    assert "0.01 is inside the suggested range of 2 of 3 tests" in findings.advice
    quantiles = findings.tables["Suggested ranges"].set_index("end")
    assert quantiles.loc["min"].tolist() == pytest.approx([2.8e-5, 1e-4, 8.2e-4])
    assert quantiles.loc["max"].tolist() == pytest.approx([2.08e-3, 1e-2, 8.2e-2])


def test_what_the_figures_of_the_spread_show(found, suggesting, lines, rows):
    figures = found("initializations", each_of(THREE, suggesting), tests=3).figures

    (curves,) = figures["curves"].axes
    (span,) = curves.patches
    assert [span.get_x(), span.get_x() + span.get_width()] == pytest.approx([1e-4, 1e-2])
    assert len(curves.get_lines()) == 3 + 1
    # At 1e-6 the three losses are 1 + the decades to the turn + 0.4 for the steep part.
    assert lines(figures["curves"])["median of 3 tests"][1][0] == pytest.approx(1 + 5 + 0.4)
    (band,) = curves.collections
    at_start = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(1e-6)]
    assert (min(at_start), max(at_start)) == pytest.approx((4.4 + 0.2 * 2, 6.4 + 0.8 * 1))
    assert list(rows(figures["ranges"])) == ["seed 0", "seed 1", "seed 2"]
    assert rows(figures["ranges"])["seed 1"] == pytest.approx((1e-3, 1e-1))


def test_the_tests_are_grouped_by_the_order_of_magnitude_of_their_maximum(
    found, suggesting, measured, flat, lines
):
    maxima = [10**-1.2, 1e-3, 10**-2.5, 1e-2, 10**-1.1]

    def answer(job):
        seed = job.labels["seed"]
        if seed == len(maxima):
            return measured(job, flat)
        return suggesting(job, maxima[seed] / 10, maxima[seed])

    figure = found("initializations", answer, tests=6).figures["groups"]
    titles = ["Maximum from 1e-3 to 1e-2", "Maximum from 1e-2 to 1e-1"]
    assert [ax.get_title() for ax in figure.axes] == titles
    assert [len(ax.get_lines()) for ax in figure.axes] == [2 + 1, 3 + 1]
    # At 1e-6: 1, the decades to the turn (ten times the maximum), and 0.4 for the steep part.
    assert lines(figure, 1)["median of 3 tests"][1][0] == pytest.approx(7.2)


@pytest.mark.parametrize("off", [-1e-12, 0.0, 1e-12])
def test_a_power_of_ten_begins_its_own_order(found, suggesting, measured, off):
    def answer(job):
        curve = suggesting(job, 1e-3, 1e-2).curve
        lower = 0.1 if job.labels["seed"] == 1 else 1
        return measured(job, LRCurve(curve.lr * lower * (1 + off), curve.loss))

    figure = found("initializations", answer, tests=2).figures["groups"]
    titles = ["Maximum from 1e-3 to 1e-2", "Maximum from 1e-2 to 1e-1"]
    assert [ax.get_title() for ax in figure.axes] == titles


def test_the_loss_that_the_rule_reads_is_drawn(found, measured, valley):
    def answer(job):
        return measured(job, replace(valley(0.1), probe_loss=valley(0.1).loss + 5))

    robust = replace(RAW, suggestion=SuggestionOptions("robust"))
    for plan, name, lowest in ((RAW, "smoothed", 1), (robust, "probe", 6)):
        figures = found("initializations", answer, plan=plan, tests=2).figures
        ax = figures["curves"].axes[0]
        assert name in ax.get_ylabel()
        assert min(ax.get_lines()[-1].get_ydata()) == pytest.approx(lowest)


def test_every_test_has_new_weights_and_a_new_order(study_of, found, suggesting):
    task = Task(model="mlp", seed=5, data_seed=7)
    seen = []

    def answer(job):
        seen.append((job.task.seed, job.task.data_seed))
        return suggesting(job, 1e-4, 1e-2)

    found("initializations", answer, task=task, tests=3)
    assert seen == [(5, 7), (6, 8), (7, 9)]
    seen.clear()
    found("initializations", answer, task=task)
    assert len(seen) == 20


def test_ranges_that_are_all_equal_have_no_spread(found, suggesting):
    findings = found("initializations", lambda job: suggesting(job, 1e-4, 1e-2), tests=3)

    assert findings.metrics["share_disjoint"] == 0
    assert findings.metrics["mean_overlap"] == pytest.approx(1)
    assert "a factor of 1." in findings.sentences[0]
    assert findings.metrics["covered_share"] == 1


def test_tests_without_a_suggestion_or_that_failed_are_left_out(
    found, suggesting, measured, flat, rows
):
    def answer(job):
        answers = {2: measured(job, flat), 3: "no memory left"}
        seed = job.labels["seed"]
        return answers[seed] if seed in answers else suggesting(job, *THREE[seed])

    findings = found("initializations", answer, tests=4)
    assert (findings.metrics["tests"], findings.metrics["without_suggestion"]) == (3, 1)
    assert findings.metrics["max_median"] == pytest.approx((1e-2 + 1e-1) / 2)
    assert "1 pair of ranges" in findings.sentences[1]
    assert "2 of 3 tests have a clear suggestion, and 1 have none" in findings.sentences[2]
    table = findings.tables["Tests"].set_index("test")
    assert list(table.index) == ["seed 0", "seed 1", "seed 2"]
    assert math.isnan(table.loc["seed 2", "lr_max"])
    assert table.loc["seed 0", "lr_max_low"] == pytest.approx(1e-2 / 1.1)
    assert table.loc["seed 0", "verdict"] == "clear reading"
    assert list(rows(findings.figures["ranges"])) == ["seed 0", "seed 1"]


def test_a_test_that_was_never_finite_ends_no_study(found, suggesting, measured):
    def answer(job):
        if job.labels["seed"] == 1:
            return measured(job, LRCurve([1e-6], [np.nan], stop="non-finite"))
        return suggesting(job, 1e-4, 1e-2)

    findings = found("initializations", answer, tests=3)
    assert findings.metrics["without_suggestion"] == 1
    assert len(findings.figures["curves"].axes[0].get_lines()) == 2 + 1


def test_a_curve_that_diverged_counts_with_its_last_loss(found, measured, valley):
    def answer(job):
        whole = valley(0.1)
        return measured(job, whole[:60] if job.labels["seed"] == 0 else whole)

    (curves,) = found("initializations", answer, tests=2).figures["curves"].axes
    # At 10 the one is at 1 + 2 decades, the other was left at 1 + 0.9 of them.
    assert curves.get_lines()[-1].get_ydata()[-1] == pytest.approx((3.0 + 1.9) / 2)


def test_fewer_than_two_answers_are_an_error_that_says_why(found, measured, flat, suggesting):
    def only(count):
        return lambda job: (
            suggesting(job, 1e-4, 1e-2) if job.labels["seed"] < count else measured(job, flat)
        )

    for count in (0, 1):
        with pytest.raises(ValueError, match=f"{count} of 3 tests .* of 2 needed: the loss never"):
            found("initializations", only(count), tests=3)
    failed = lambda job: "broken" if job.labels["seed"] else suggesting(job, 1e-4, 1e-2)  # noqa: E731
    with pytest.raises(ValueError, match="1 of 1 test .* of 2 needed: raise the number of tests"):
        found("initializations", failed, tests=3)
    with pytest.raises(ValueError, match="all 3 range tests failed; the first: broken"):
        found("initializations", lambda job: "broken", tests=3)


@pytest.mark.parametrize("kind", ["initializations", "data-order"])
def test_one_test_and_weights_from_a_file_are_refused(refused, kind):
    refused(kind, "tests=1", "2", f"kind={kind}", "raise it", tests=1)
    task = Task(init="file:w.safetensors")
    refused(kind, "init='file:w.safetensors'", "use an initialiser", task=task)


def order_study(found, suggesting, new, same, **more):
    def answer(job):
        group = new if job.labels["group"] == "new weights" else same
        index = job.labels["data_seed"] - (0 if group is new else len(new))
        high = 10 ** group[index]
        return suggesting(job, high / 100, high)

    return found("data-order", answer, tests=len(new), **more)


def test_the_variance_is_divided_by_hand(found, suggesting):
    # Variances of log10(max): (1 + 0 + 1) / 2 = 1 and (0.04 + 0 + 0.04) / 2 = 0.04.
    findings = order_study(found, suggesting, [-3, -2, -1], [-2.2, -2, -1.8])

    metrics = findings.metrics
    assert metrics["order_share"] == pytest.approx(0.04)
    assert metrics["init_share"] == pytest.approx(0.96)
    assert metrics["total_sd_decades"] == pytest.approx(1)
    assert metrics["order_sd_decades"] == pytest.approx(0.2)
    assert 0 <= metrics["order_share_low"] <= 0.04 <= metrics["order_share_high"] <= 1
    assert "96% is due to initialisation and 4% to data order" in findings.sentences[-1]
    # The spread is that of the same weights; the other sample is beside it.
    assert metrics["max_median"] == pytest.approx(1e-2)
    assert metrics["max_q90"] == pytest.approx(1e-2 + 0.8 * (10**-1.8 - 1e-2))
    assert "With new weights as well, the median range is 0.0001" in findings.sentences[3]
    assert "between 0.0028 and 0.082," in findings.sentences[3]
    new, same = findings.figures["both"].axes
    assert "new weights" in new.get_title().lower()
    assert "same weights" in same.get_title().lower()
    assert findings.tables["Tests"]["seed"].tolist() == [0, 1, 2, 0, 0, 0]


def test_no_two_tests_of_a_data_order_study_are_the_same(study_of, suggesting):
    study = study_of("data-order", lambda job: suggesting(job, 1e-4, 1e-2), tests=3)
    study.findings()
    seeds = [(job.task.seed, job.task.data_seed) for job in study.run.jobs]
    assert seeds == [(0, 0), (1, 1), (2, 2), (0, 3), (0, 4), (0, 5)]
    assert len({job.name for job in study.run.jobs}) == 6


def test_maxima_without_variance_have_no_shares(found, suggesting):
    findings = order_study(found, suggesting, [-2, -2, -2], [-2.2, -2, -1.8])
    assert math.isnan(findings.metrics["order_share"])
    assert findings.metrics["order_sd_decades"] == pytest.approx(0.2)
    assert findings.sentences[-1].startswith("With new weights all maxima are equal")


@pytest.mark.parametrize("same", [[-2.9, -2.0, -0.9], [-2, -2, -2]])
def test_the_order_may_be_the_whole_and_nothing_of_the_variance(found, suggesting, same):
    findings = order_study(found, suggesting, [-2.9, -2.0, -0.9], same)
    assert findings.metrics["order_share"] in (pytest.approx(1), 0)


def test_too_few_tests_that_did_not_fail_are_counted(found, suggesting, complains):
    def answer(job):
        return "broken" if job.name in ("order 0", "order 1") else suggesting(job, 1e-4, 1e-2)

    with complains("1 of 1 test with a curve gave a suggestion, of 2 needed"):
        found("data-order", answer, tests=3)


def test_the_task_of_the_article_has_the_published_ranges_drawn(found, suggesting):
    task = Task(dataset="cifar10", model="resnet56", batch_size=512)
    figures = found("initializations", each_of(THREE, suggesting), task=task, tests=3).figures

    for spans in (figures["curves"].axes[0].patches[1:], figures["ranges"].axes[0].patches):
        assert [span.get_x() for span in spans] == pytest.approx([0.08, 0.1, 5e-4])
        assert [span.get_x() + span.get_width() for span in spans] == pytest.approx([3, 2, 0.4])
