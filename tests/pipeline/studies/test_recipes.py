from __future__ import annotations

import math

import pytest

from lrrt_stage import RangeTestOptions, Smoothing, SuggestionOptions
from pipeline import RangeTestPlan, Task
from pipeline.studies import KINDS
from pipeline.task.recipes import RECIPES

STEPS = ["clipping", "regularisation", "augmentation", "normalisation", "stop rule"]
DECADES = {
    "keras": (-3.0, -3.0, -3.0),
    "clipping": (-2.6, -2.5, -2.4),
    "regularisation": (-2.6, -2.5, -2.4),
    "augmentation": (-2.8, -2.7, -2.6),
    "normalisation": (-2.8, -2.7, -2.6),
    "stop rule": (-2.8, -2.7, -2.6),
}
"""log10 of the maximum after each step, for three seeds: the clipping moves it by 0.4, 0.5 and
0.6, the augmentation by -0.2."""


@pytest.fixture
def walk(suggesting):
    """A function to an answer with these maxima."""

    def make(decades=DECADES):
        def answer(job):
            high = 10 ** decades[job.labels["ingredient"]][job.task.seed]
            return suggesting(job, high / 10, high)

        return answer

    return make


@pytest.fixture
def recipes(found):
    """A function that carries out the study without smoothing, which the recipes would set."""

    def make(answer, tests=3, **more):
        return found("recipes", answer, tests=tests, fixed=frozenset({"beta"}), **more)

    return make


def test_the_effects_by_hand(recipes, walk):
    findings = recipes(walk())

    expected = dict.fromkeys((f"effect_decades.{name}" for name in STEPS), 0.0)
    expected |= {
        "effect_decades.clipping": 0.5,
        "effect_decades.augmentation": -0.2,
        "effect_decades.all together": 0.3,
    }
    assert {n: findings.metrics[n] for n in expected} == pytest.approx(expected, abs=1e-9)
    # Standard deviation 0.1 of three differences; t with 2 degrees of freedom is 2.920.
    half = 2.920 * 0.1 / math.sqrt(3)
    table = findings.tables["Effects"].set_index("ingredient")
    assert list(table.index) == [*STEPS, "all together"]
    assert table.loc["clipping", "low"] == pytest.approx(0.5 - half, abs=1e-4)
    assert table.loc["clipping", "high"] == pytest.approx(0.5 + half, abs=1e-4)
    assert table.loc["augmentation", "high"] == pytest.approx(-0.2)
    assert table["seeds"].tolist() == [3] * 6
    total, largest = findings.sentences
    assert "+0.30 decades (90 % interval +0.13 to +0.47), over 3 seeds" in total
    assert "clipping: +0.50 decades (90 % interval +0.33 to +0.67)" in largest
    assert "clipping" in findings.advice


def test_the_largest_step_may_be_downwards(recipes, walk):
    decades = DECADES | dict.fromkeys(STEPS[2:], (-4.0, -4.0, -4.0))
    said = recipes(walk(decades)).sentences
    assert "-1.00 decades" in said[0]
    assert "augmentation: -1.50 decades" in said[1]


def test_nothing_moves_the_suggestion(recipes, walk):
    said = recipes(walk(dict.fromkeys(DECADES, (-3.0,) * 3))).sentences
    assert "+0.00 decades (90 % interval +0.00 to +0.00)" in said[0]
    assert said[1] == "No single ingredient moves it."


def test_what_the_figures_show(recipes, walk, lines, rows):
    figures = recipes(walk()).figures
    assert lines(figures["effects"])["mean"][0] == pytest.approx(
        [0.5, 0, -0.2, 0, 0, 0.3], abs=1e-9
    )
    shown = rows(figures["ranges"])
    assert list(shown) == ["keras", *(f"+ {name}" for name in STEPS)]
    assert shown["+ clipping"] == pytest.approx((10**-3.5, 10**-2.5))


def test_the_task_of_the_article_has_the_published_ranges_drawn(recipes, walk, rows):
    task = Task(dataset="cifar10", model="resnet56", batch_size=512)
    shown = rows(recipes(walk(), task=task).figures["ranges"])
    assert shown["article, Keras median"] == (0.1, 2.0)
    assert shown["article, fast.ai median"] == (5e-4, 0.4)


def options_of(job):
    parts = (job.task, job.plan.ramp, job.plan.smoothing)
    names = set(RECIPES["keras"])
    return {n: v for part in parts for n, v in vars(part).items() if n in names}


def test_the_way_goes_from_one_recipe_to_the_other_with_the_same_seeds(study_of, measured, valley):
    def answer(job):
        return measured(job, valley(1e-2))

    study = study_of("recipes", answer, tests=3)
    KINDS["recipes"].carry_out(study)
    jobs = study.run.jobs
    assert len(jobs) == 18
    assert options_of(jobs[0]) == RECIPES["keras"]
    assert options_of(jobs[-1]) == RECIPES["fastai"]
    assert options_of(jobs[3]) == RECIPES["keras"] | {"clip_norm": None}
    seeds = [(job.task.seed, job.task.data_seed) for job in jobs]
    assert seeds == [(0, 0), (1, 1), (2, 2)] * 6
    assert len({job.name for job in jobs}) == 18


def test_what_the_user_gave_is_no_step(study_of, walk):
    plan = RangeTestPlan(
        RangeTestOptions(stop_multiple=7.0),
        Smoothing("corrected", 0.0),
        SuggestionOptions("article"),
    )
    task = Task(model="mlp", clip_norm=0.3)
    fixed = frozenset({"clip_norm", "stop_multiple", "beta", "average"})
    study = study_of("recipes", walk(), tests=3, task=task, plan=plan, fixed=fixed)
    findings = KINDS["recipes"].carry_out(study)
    steps = ["regularisation", "augmentation", "normalisation"]
    assert findings.tables["Effects"]["ingredient"].tolist() == [*steps, "all together"]
    for job in study.run.jobs:
        assert job.task.clip_norm == 0.3
        assert job.plan.ramp.stop_multiple == 7.0
        assert job.plan.smoothing.beta == 0.0


def test_a_step_without_an_answer_has_no_effect_and_the_rest_have(recipes, walk, measured, flat):
    def answer(job):
        if job.labels["ingredient"] == "regularisation":
            return measured(job, flat)
        return "broken" if job.name == "clipping seed 2" else walk()(job)

    findings = recipes(answer)
    metrics = findings.metrics
    assert metrics["effect_decades.clipping"] == pytest.approx(0.45)  # of two seeds
    assert math.isnan(metrics["effect_decades.regularisation"])
    assert math.isnan(metrics["effect_decades.augmentation"])
    assert metrics["effect_decades.all together"] == pytest.approx(0.3)
    assert "clipping: +0.45 decades" in findings.sentences[1]
    assert "3 of them gave no suggestion" in findings.advice
    assert "nan" not in " ".join(findings.sentences)
    for figure in findings.figures.values():
        figure.draw_without_rendering()


def test_a_recipe_without_an_answer_leaves_no_total(recipes, walk, measured, flat):
    def answer(job):
        return measured(job, flat) if job.labels["ingredient"] == "keras" else walk()(job)

    findings = recipes(answer)
    assert findings.sentences[0] == "No seed has a suggestion both with keras and with fastai."


def test_no_answer_at_all_is_an_error(recipes, measured, flat, complains):
    with complains("0 of 12 tests", "the loss never fell"):
        recipes(lambda job: measured(job, flat), tests=2)


def test_what_makes_no_study_is_refused(refused):
    refused("recipes", "tests=1", "kind=recipes", tests=1)
    refused("recipes", "init='file:w.safetensors'", task=Task(init="file:w.safetensors"))
    fixed = frozenset(RECIPES["keras"])
    refused("recipes", "every ingredient", "give fewer", fixed=fixed)


def test_real_tests_on_the_digits(real):
    findings = real("recipes", tests=2, iterations=40, batch_size=32)
    effects = findings.tables["Effects"].set_index("ingredient")
    assert list(effects.index) == [*STEPS, "all together"]
    assert len(findings.tables["Tests"]) == 12
    # Single steps add up to the whole where every seed has an answer at every step.
    if effects["seeds"].eq(2).all():
        single = effects["decades"][:-1].sum()
        assert single == pytest.approx(effects.loc["all together", "decades"], abs=1e-9)
