from __future__ import annotations

import math

import pytest

from pipeline.jobs.jobs import RangeTestJob

RANGES = [(1e-3, 1e-1), (1e-5, 1e-4), (1e-4, 1e-2)]
"""The first two are a decade apart; the others overlap or touch."""
LOSSES = {"AA": 0.5, "AB": 0.6, "BA": math.inf, "BB": 0.4}


@pytest.fixture
def crossed(suggesting, trained):
    """A function to an answer with these ranges by seed, and losses by weights and range."""

    def make(ranges=RANGES, losses=LOSSES, train_loss=(2.0, 1.0)):
        def answer(job):
            if isinstance(job, RangeTestJob):
                return suggesting(job, *ranges[job.task.seed])
            return trained(job, [losses[job.labels["weights"] + job.labels["range"]]], train_loss)

        return answer

    return make


def test_the_two_by_two_by_hand(found, crossed, lines):
    findings = found("mismatch", crossed(), tests=3)

    metrics = findings.metrics
    assert metrics["gap_decades"] == pytest.approx(1)
    assert metrics["max_apart_decades"] == pytest.approx(3)
    assert metrics["diverged"] == 1
    assert {name: metrics[name] for name in metrics if name.startswith("val_loss")} == {
        "val_loss.A_with_A": 0.5,
        "val_loss.A_with_B": 0.6,
        "val_loss.B_with_A": math.inf,
        "val_loss.B_with_B": 0.4,
    }
    differ, diverged, a_ends, b_ends, verdict = findings.sentences
    assert "A (seed 0) has the highest maximum and B (seed 1) the lowest" in differ
    assert "0.001 to 0.1 and 1e-05 to 0.0001, 1 decades apart" in differ
    assert "1 of the four" in diverged
    assert "B with A's range" in diverged
    assert a_ends == "Validation loss of A at the end: 0.5 with its own range, 0.6 with B's."
    assert b_ends.endswith("0.4 with its own range, not finite with A's.")
    assert "Each does better" in verdict
    assert "of 3 tests" in findings.advice
    table = findings.tables["Trainings"].set_index(["weights", "range"])
    assert table.loc[("B", "A"), "lr_max"] == pytest.approx(0.1)
    assert table.loc[("A", "B"), "lr_max"] == pytest.approx(1e-4)
    assert table["diverged"].tolist() == [False, False, True, False]
    assert len(lines(findings.figures["trainings"])) == 4
    for figure in findings.figures.values():
        figure.draw_without_rendering()


def test_each_training_starts_from_its_own_weights(study_of, crossed):
    study = study_of("mismatch", crossed(), tests=3)
    study.findings()
    trainings = study.run.jobs[3:]
    assert [(job.name, job.task.seed, job.task.data_seed) for job in trainings] == [
        ("A with A's range", 0, 0),
        ("A with B's range", 0, 0),
        ("B with A's range", 1, 1),
        ("B with B's range", 1, 1),
    ]
    assert [job.lr_range.max for job in trainings] == pytest.approx([1e-1, 1e-4] * 2)


@pytest.mark.parametrize(
    ("losses", "texts"),
    [
        ({"AA": math.inf}, ["of A at the end: not finite with its own range, 0.6 with B's."]),
        ({"AA": math.nan, "AB": math.nan}, ["not finite with its own range, not finite with B's."]),
        ({"BA": 0.4}, ["None of the four trainings diverged", "0.4 with A's."]),
    ],
)
def test_sentences_for_every_outcome(found, crossed, losses, texts):
    findings = found("mismatch", crossed(losses=LOSSES | losses), tests=3)
    said = " ".join(findings.sentences)
    assert [text for text in texts if text not in said] == []
    assert "nan" not in said


@pytest.mark.parametrize(
    ("train_loss", "diverged"),
    [((2.0, 9.0, 7.0, 2.5), 4), ((2.0, 9.0, 2.0, 2.0), 4), ((2.0, 9.0, 1.9, 1.9), 0)],
)
def test_a_finite_loss_that_did_not_fall_is_divergence(
    found, suggesting, trained, train_loss, diverged
):
    # Two epochs of two steps; the last epoch's median is set against the very first loss.
    def answer(job):
        if isinstance(job, RangeTestJob):
            return suggesting(job, *RANGES[job.task.seed])
        return trained(job, [3.0, 2.5], train_loss)

    findings = found("mismatch", answer, tests=3)
    assert findings.metrics["diverged"] == diverged


def test_ranges_that_overlap_are_said_to(found, crossed):
    findings = found("mismatch", crossed([RANGES[0], RANGES[2], RANGES[0]]), tests=3)
    assert findings.metrics["gap_decades"] == 0
    assert findings.metrics["max_apart_decades"] == pytest.approx(1)
    assert "0.0001 to 0.01, which overlap or touch." in findings.sentences[0]


def test_without_two_maxima_there_is_nothing_to_exchange(study_of, crossed, complains):
    equal = [(1e-3, 1e-1), (1e-3, 1e-1)]
    for ranges, words in (
        (equal, ("the maxima of all 2", "0.1", "raise the number")),
        ([(1e-3, 1e-1), (1e-4, 1e-1)], ("the maxima of all 2", "0.1", "raise the number")),
    ):
        study = study_of("mismatch", crossed(ranges), tests=2)
        with complains(*words):
            study.findings()
        assert len(study.run.jobs) == 2  # no training


def test_a_training_that_failed_is_told_with_its_reason(found, crossed, complains):
    def answer(job):
        return "out of memory" if job.name == "B with A's range" else crossed()(job)

    with complains("1 of the four trainings failed", "the first: out of memory"):
        found("mismatch", answer, tests=3)


def test_one_test_is_refused(refused):
    refused("mismatch", "tests=1", "kind=mismatch", tests=1)


def test_real_tests_and_trainings_on_the_digits(real):
    findings = real("mismatch", tests=3, batch_size=128)
    assert len(findings.tables["Trainings"]) == 4
    assert findings.metrics["max_apart_decades"] > 0
    assert findings.metrics["val_loss.A_with_A"] > 0
    assert findings.figures.keys() == {"ranges", "trainings"}
