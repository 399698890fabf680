from __future__ import annotations

import numpy as np
import pytest

from lrrt_stage import LRCurve
from pipeline.studies import KINDS


@pytest.fixture
def source(suggesting, job):
    """A function to tests with these maxima."""
    return lambda *maxima: [
        suggesting(job(seed), high / 10, high) for seed, high in enumerate(maxima)
    ]


def test_the_groups_by_hand(found, source, lines):
    findings = found("grouped", source=source(1e-3, 10**-2.5, 1e-2, 10**-1.1, 10**-1.2))

    assert findings.metrics["groups"] == 2
    assert findings.metrics["largest_group_share"] == pytest.approx(3 / 5)
    assert "2 from 1e-3 to 1e-2, 3 from 1e-2 to 1e-1." in findings.sentences[0]
    table = findings.tables["Groups"].set_index("maximum")
    assert table["tests"].tolist() == [2, 3]
    assert table["share"].tolist() == pytest.approx([0.4, 0.6])
    # At 1e-6: 1, the decades to the turn (ten times the maximum), and 0.4 for the steep part.
    assert table["first loss"].tolist() == pytest.approx([1.4 + np.mean([4, 4.5]), 1.4 + 5.8])
    assert table["lowest loss"].tolist() == pytest.approx([1, 1])
    figure = findings.figures["groups"]
    assert ["2 tests" in figure.axes[0].get_title(), len(figure.axes)] == [True, 2]
    assert len(figure.axes[1].get_lines()) == 3 + 1
    assert lines(figure, 1)["median of 3 tests"][1][0] == pytest.approx(7.2)


@pytest.mark.parametrize("off", [-1e-12, 0.0, 1e-12])
def test_a_power_of_ten_begins_its_own_order(found, suggesting, measured, job, off):
    test = suggesting(job(), 1e-3, 1e-2)
    moved = measured(test.job, LRCurve(test.curve.lr * (1 + off), test.curve.loss))
    assert "1 from 1e-2 to 1e-1" in found("grouped", source=[moved]).sentences[0]


def test_one_test_is_one_order_of_magnitude(found, source):
    findings = found("grouped", source=source(1e-3))
    assert "maxima of 1 test fall into 1 order of magnitude: 1 from 1e-3" in findings.sentences[0]
    assert findings.metrics["largest_group_share"] == 1


def test_tests_without_a_suggestion_are_counted_and_left_out(found, source, measured, job, flat):
    findings = found("grouped", source=[*source(1e-3, 1e-1), measured(job(7), flat)])
    assert "1 of them gave no suggestion" in findings.advice
    assert findings.metrics["largest_group_share"] == 0.5
    assert findings.tables["Groups"]["share"].sum() == pytest.approx(1)


def test_what_has_no_groups_is_refused(refused, measured, job, flat):
    refused("grouped", "kind=grouped", "study_run_id")
    refused("grouped", "0 of 1 test", "the loss never fell", source=[measured(job(), flat)])
    refused("grouped", "0 of 0 tests", source=[])


def test_the_tests_are_not_run_again(study_of, source):
    study = study_of("grouped", source=source(1e-3, 1e-1))
    KINDS["grouped"].carry_out(study)
    assert study.run.jobs == []
