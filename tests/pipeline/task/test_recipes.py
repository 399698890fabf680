from __future__ import annotations

from dataclasses import fields

import pytest

from lrrt_stage import LRRange, RangeTestOptions, Smoothing
from pipeline.task.recipes import RECIPES, RecipeOptions, published_ranges
from pipeline.task.tasks import Task

ARTICLE = {"dataset": "cifar10", "model": "resnet56", "batch_size": 512}


def named(options: type) -> set[str]:
    return {field.name for field in fields(options)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_options_that_there_are_to_values_that_they_take(name):
    left = dict(RECIPES[name])
    for options in (Task, RangeTestOptions, Smoothing):
        options(**{key: left.pop(key) for key in named(options) & set(left)})
    assert not left


def test_the_recipes_are_those_of_the_article():
    # Its table of the two variants; 10 - 20 · 0.98 / 3 = 3.4667.
    keras, fastai = RECIPES["keras"], RECIPES["fastai"]
    assert set(keras) == set(fastai)

    assert (keras["clip_norm"], fastai["clip_norm"]) == (1.0, None)
    assert (keras["l2"], fastai["l2"]) == (1e-4, 0)
    assert (keras["weight_decay"], fastai["weight_decay"]) == (0, 1e-4)
    assert (keras["augment"], fastai["augment"]) == ("shift-flip", "crop-flip")
    assert (keras["normalize"], fastai["normalize"]) == (False, True)
    assert keras["stop_multiple"] == pytest.approx(3.4667, abs=5e-5)
    assert fastai["stop_multiple"] == 4
    for recipe in (keras, fastai):
        assert (recipe["average"], recipe["beta"]) == ("corrected", 0.98)
        assert recipe["init"] == "kaiming_uniform"


def test_without_a_recipe_no_option_is_set():
    assert RecipeOptions().values == {}
    assert RecipeOptions("fastai").values == RECIPES["fastai"]


def test_an_unknown_recipe_brings_the_nearest_name(complains):
    with complains("unknown recipe 'fast.ai'", "did you mean 'fastai'?"):
        RecipeOptions("fast.ai")


class TestPublishedRanges:
    def test_those_of_figure_6_are_for_the_articles_task(self):
        assert published_ranges(Task(**ARTICLE, seed=3, augment="crop-flip")) == {
            "fast.ai, published": LRRange(0.08, 3),
            "article, Keras median": LRRange(0.1, 2),
            "article, fast.ai median": LRRange(5e-4, 0.4),
        }

    @pytest.mark.parametrize(
        "change",
        [{"dataset": "cifar100"}, {"model": "resnet20"}, {"batch_size": 256}, {"accumulate": 2}],
    )
    def test_there_are_none_for_another(self, change):
        assert published_ranges(Task(**{**ARTICLE, **change})) == {}
