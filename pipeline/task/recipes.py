"""The two published settings of the range test.

Their source is the code published with S. Maggio, *The Learning Rate Black Magic* (2020):
ResNet-56 on CIFAR-10, batches of 512, once with Keras and once with fast.ai. Options that both
set to the default of this project (SGD with momentum 0.9, the ramp) are not part of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrrt_stage import LRRange
from lrrt_stage.settings import Options, setting
from pipeline.task.tasks import Task

__all__ = ["PUBLISHED_RANGES", "RECIPES", "RecipeOptions", "published_ranges"]

# Both programs plot the bias-corrected average with this factor, and stop by it.
BETA = 0.98

RECIPES: dict[str, dict[str, Any]] = {
    "keras": {
        # he_uniform, a different name for the same distribution.
        "init": "kaiming_uniform",
        # SGD's clipnorm; Keras 2.3.1 clips all gradients by their common norm.
        "clip_norm": 1.0,
        # kernel_regularizer l2(1e-4). The program then adds the same penalty to every layer again,
        # and to the bias of the last layer, so its convolutions had 2e-4 in effect. 1e-4 is what
        # it declares, and what its last layer had.
        "l2": 1e-4,
        "weight_decay": 0.0,
        # Shifts of 0.1 and horizontal flips, with fill_mode nearest.
        "augment": "shift-flip",
        # Images divided by 255; the lines that would subtract the mean are commented out.
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
        # lr_find(wd=1e-4) on all parameters. fast.ai 1 decouples it from the gradient (true_wd);
        # SGD here does not, so here momentum applies to the decay as well.
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
"""Name -> options that the published program of that framework sets, and their values.

Properties of the frameworks' layers, such as momentum and ε of batch norm, are not options, and so
not part of a recipe. Both programs had a 1 × 1 convolution without batch norm where the size
changes in a ResNet: ``model_args={"shortcut": "convolution"}``.
"""

PUBLISHED_RANGES: dict[str, LRRange] = {
    "fast.ai, published": LRRange(0.08, 3.0),
    "article, Keras median": LRRange(0.1, 2.0),
    "article, fast.ai median": LRRange(5e-4, 0.4),
}
"""Source -> range for ResNet-56 on CIFAR-10 in batches of 512 (the article, Fig 6)."""


@dataclass(frozen=True)
class RecipeOptions(Options):
    """The recipe that sets the options which are not given."""

    recipe: str | None = setting(
        None, "Published settings for every option that is not given; none: off.", choices=RECIPES
    )

    @property
    def values(self) -> Mapping[str, Any]:
        """The recipe's options and values; empty without a recipe."""
        return {} if self.recipe is None else RECIPES[self.recipe]


def published_ranges(task: Task) -> dict[str, LRRange]:
    """Return :data:`PUBLISHED_RANGES` if they apply to ``task``, else an empty mapping."""
    compared = (task.dataset, task.model, task.batch_size, task.accumulate)
    return dict(PUBLISHED_RANGES) if compared == ("cifar10", "resnet56", 512, 1) else {}
