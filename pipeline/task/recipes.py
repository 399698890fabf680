"""The two published settings of the range test, and the ingredients in which they differ.

Their source is the code published with S. Maggio, *The Learning Rate Black Magic* (2020):
ResNet-56 on CIFAR-10, batches of 512, once with Keras and once with fast.ai. What both set alike
and is a default here as well (SGD with momentum 0.9, the ramp) is no part of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrrt_stage import LRRange
from lrrt_stage.errors import unknown_name
from lrrt_stage.settings import Options, setting
from pipeline.task.tasks import Task

__all__ = [
    "INGREDIENTS",
    "PUBLISHED_RANGES",
    "RECIPES",
    "Recipe",
    "RecipeOptions",
    "published_ranges",
    "steps",
]

Recipe = Mapping[str, Any]
"""Name of an option (a field of Task, RangeTestOptions or Smoothing) -> its value."""

# Both programs look at, and stop by, the bias-corrected average with this factor.
BETA = 0.98

RECIPES: dict[str, Recipe] = {
    "keras": {
        # he_uniform, which is the same distribution under another name.
        "init": "kaiming_uniform",
        # SGD's clipnorm; Keras 2.3.1 clips all gradients by their common norm.
        "clip_norm": 1.0,
        # kernel_regularizer l2(1e-4). The program then adds the same penalty to every layer once
        # more, and also to the bias of the last, so that 2e-4 is what its convolutions had; 1e-4
        # is what it says, and what its last layer had.
        "l2": 1e-4,
        "weight_decay": 0.0,
        # Shifts of 0.1 and horizontal flips, with fill_mode nearest.
        "augment": "shift-flip",
        # Images divided by 255; the lines that would take the mean away are commented out.
        "normalize": False,
        # LRFinder's default multiple, 10 at β = 0 and 4 at β = 0.9.
        "stop_multiple": 10 - 20 * BETA / 3,
        "average": "corrected",
        "beta": BETA,
    },
    "fastai": {
        # kaiming_uniform for all convolutions and the last layer.
        "init": "kaiming_uniform",
        # lr_find has no clipping.
        "clip_norm": None,
        "l2": 0.0,
        # lr_find(wd=1e-4) on all parameters. fast.ai 1 decouples it from the gradient (true_wd),
        # which SGD here does not: the same but for the momentum of the decay.
        "weight_decay": 1e-4,
        # rand_pad(4, 32), by reflection, and flip_lr.
        "augment": "crop-flip",
        # normalize(cifar_stats).
        "normalize": True,
        # lr_find ends at four times the best smoothed loss.
        "stop_multiple": 4.0,
        "average": "corrected",
        "beta": BETA,
    },
}
"""Name -> what the published program of that framework sets.

What the layers of the two frameworks do of themselves (momentum and ε of batch norm, for example)
is no option, and so in neither. Both had a 1 × 1 convolution without batch norm where a ResNet's
size changes: ``model_args={"shortcut": "convolution"}``.
"""

INGREDIENTS: dict[str, tuple[str, ...]] = {
    "clipping": ("clip_norm",),
    "regularisation": ("l2", "weight_decay"),
    "augmentation": ("augment",),
    "normalisation": ("normalize",),
    "stop rule": ("stop_multiple",),
}
"""Name -> options that are switched together, in the order in which :func:`steps` goes.

Initialisation and smoothing are the same in both recipes."""

PUBLISHED_RANGES: dict[str, LRRange] = {
    "fast.ai, published": LRRange(0.08, 3.0),
    "article, Keras median": LRRange(0.1, 2.0),
    "article, fast.ai median": LRRange(5e-4, 0.4),
}
"""Source -> range for ResNet-56 on CIFAR-10 in batches of 512 (the article, Fig 6)."""


@dataclass(frozen=True)
class RecipeOptions(Options):
    """Which recipe the options that are not given come from."""

    recipe: str | None = setting(
        None, "Published settings for every option that is not given; none: off.", choices=RECIPES
    )

    @property
    def values(self) -> Recipe:
        """The recipe's options and values; empty where there is no recipe."""
        return {} if self.recipe is None else RECIPES[self.recipe]


def steps(start: str = "keras", end: str = "fastai") -> list[tuple[str, dict[str, Any]]]:
    """Return the way from one recipe to another, an ingredient at a time.

    Returns
    -------
    list of (str, dict)
        First ``(start, its options)``, then for every ingredient in which the two differ its name
        and all options after it too was switched; the last are those of ``end``.

    Raises
    ------
    LRRTError
        If there is no recipe of that name; the message has the nearest.
    """
    for name in (start, end):
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
    options, target = dict(RECIPES[start]), RECIPES[end]
    way = [(start, options)]
    for ingredient, names in INGREDIENTS.items():
        switched = options | {name: target[name] for name in names}
        if switched != options:
            options = switched
            way.append((ingredient, options))
    return way


def published_ranges(task: Task) -> dict[str, LRRange]:
    """Return :data:`PUBLISHED_RANGES` if ``task`` is what they are for, else an empty mapping."""
    setting_of_the_article = (
        task.dataset == "cifar10"
        and task.model == "resnet56"
        and task.batch_size == 512
        and task.accumulate == 1
    )
    return dict(PUBLISHED_RANGES) if setting_of_the_article else {}
