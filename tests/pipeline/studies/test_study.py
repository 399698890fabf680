from __future__ import annotations

import math

import pytest

from pipeline import Task
from pipeline.jobs.jobs import TrainingJob
from pipeline.studies.options import KINDS, StudyOptions
from pipeline.studies.study import counted, suggested

EXPECTED = {
    "initializations",
    "data-order",
    "smoothing",
    "batch-size",
    "validation",
    "mismatch",
}


def test_the_kinds_that_there_are():
    assert set(KINDS) == EXPECTED
    for name in EXPECTED:
        assert StudyOptions(kind=name).kind == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "initialisations"}, ("unknown kind 'initialisations'", "'initializations'")),
        ({"kind": "batchsize"}, ("did you mean 'batch-size'",)),
        ({"kind": "zzz"}, ("choose one of", "mismatch")),
        ({"workers": 0}, ("workers=0", "at least 1", "none")),
        ({"workers": -2}, ("workers=-2",)),
        ({"tests": 0}, ("tests=0", "at least 1")),
        ({"kind": "smoothing", "tests": 2}, ("tests=2", "kind=smoothing", "leave it out")),
        ({"kind": "validation", "tests": 2}, ("tests=2", "kind=validation", "leave it out")),
    ],
)
def test_options_that_cannot_be_are_refused(complains, options, words):
    with complains(*words):
        StudyOptions(**options)


def test_a_list_is_sorted_and_has_each_value_once():
    options = StudyOptions(batch_sizes="64, 16,64", betas="0.9")
    assert options.list_of("batch_sizes", int) == [16, 64]
    assert options.list_of("betas", float) == [0.9]


def test_a_kind_of_ones_own_can_be_registered(study_of, tmp_path, monkeypatch):
    (tmp_path / "a_study_of_mine.py").write_text("def mine(study):\n    return study.tests(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, "my-own", "a_study_of_mine:mine")
    assert StudyOptions(kind="my-own").kind == "my-own"
    assert study_of("my-own").findings() == 3
    assert study_of("my-own", tests=7).findings() == 7


def test_a_failed_test_of_many_is_left_out_and_the_order_kept(study_of, suggesting):
    def answer(job):
        return "broken" if job.task.seed == 1 else suggesting(job, 1e-4, 1e-2)

    study = study_of("initializations", answer)
    jobs = [study.job(f"seed {seed}", {}, seed=seed) for seed in range(4)]
    assert [each.job.task.seed for each in study.measure(jobs)] == [0, 2, 3]


def test_a_job_is_the_studys_task_with_changes(study_of):
    study = study_of("initializations", task=Task(model="mlp", clip_norm=0.5, seed=4))
    job = study.job("a", {"x": 1}, seed=9, batch_size=8)
    assert job.task == Task(model="mlp", clip_norm=0.5, seed=9, batch_size=8)
    assert (job.name, job.labels, job.plan) == ("a", {"x": 1}, study.plan)


def test_suggestions_are_those_of_the_plans_rule(measured, suggesting, job, flat, complains):
    with_one, without = suggesting(job(), 1e-4, 1e-2), measured(job(), flat)
    (found,) = suggested([without, with_one])
    assert (found.min, found.max) == pytest.approx((1e-4, 1e-2))
    with complains("1 of 2 tests", "of 2 needed", "the loss never fell"):
        suggested([without, with_one], at_least=2)
    with complains("1 of 1 test ", "raise the number of tests"):
        suggested([with_one], at_least=2)
    with complains("0 of 0 tests"):
        suggested([])


def test_a_number_with_its_noun():
    assert [counted(number, "seed") for number in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_names_of_metrics_are_stable_and_scalars(
    name, found, suggesting, trained, measured, valley
):
    # MLflow takes letters, digits, and _ - . / : and space.
    def answer_with(shift):
        def answer(job):
            if isinstance(job, TrainingJob):
                return trained(job, [math.inf if shift else 0.5])
            lr_range = 10 ** (-2 - 0.2 * job.task.seed - 0.3 * job.task.data_seed - shift)
            curve = suggesting(job, lr_range / 10, lr_range).curve
            if job.labels.get("validation") in ("sample", "full"):
                series = {"val_loss": valley(0.1).loss, "full_val_loss": valley(0.1).loss}
                curve = type(curve)(curve.lr, curve.loss, **series)
            return measured(job, curve)

        return answer

    more = {"tests": 3, "batch_sizes": "16,64"}
    if name == "smoothing":
        more |= {"betas": "0,0.5"}
    if name in ("smoothing", "validation"):
        more |= {"tests": None}
    first, second = (found(name, answer_with(shift), **more) for shift in (0, 0.5))
    assert list(first.metrics) == list(second.metrics)
    for key, value in first.metrics.items():
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzAB0123456789_-./: ")
        assert isinstance(float(value), float)
    for findings in (first, second):
        assert findings.title
        # The tests of validation are one test, validated in two ways.
        assert name == "validation" or findings.metrics["covered_max"] > 0
        assert findings.question.endswith("?")
        for sentence in findings.sentences:
            assert sentence.endswith(".")
            assert not sentence.endswith("..")
            assert "nan" not in sentence
        assert findings.advice.endswith(".")
        assert "nan" not in findings.advice
        for figure in findings.figures.values():
            figure.draw_without_rendering()
