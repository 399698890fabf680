"""The built-in setup: a dataset, a model, an optimizer, and a loss, each by name."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrrt_stage.measure.step import batch_loss_of
from lrrt_stage.settings import Options, require, setting
from lrrt_stage.state import weights
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.batches import Batches
from pipeline.data.factories import call, is_factory, load_factory, require_name
from pipeline.data.splits import Data
from pipeline.models.networks import build_model
from pipeline.models.optimizers import OPTIMIZERS, build_optimizer
from pipeline.task.setup import Deployed, Setup

__all__ = ["LOSSES", "BuiltinOptions", "builtin_setup"]

LOSSES = {name: kind for name, kind in vars(nn).items() if name.endswith("Loss")}
"""Name -> the losses of ``torch.nn``."""


@dataclass(frozen=True)
class BuiltinOptions(Options):
    """The options of the built-in setup."""

    dataset: str = setting(
        "digits",
        "digits, diabetes (a regression), photographs, cifar10, cifar100, mnist, fashion_mnist, "
        "imagefolder:PATH, or module:factory.",
    )
    dataset_args: dict[str, Any] = setting({}, "Keyword arguments of the dataset, as JSON.")
    model: str = setting(
        "cnn", "cnn, mlp, resnet20/32/44/56/110, a torchvision classifier, or module:factory."
    )
    model_args: dict[str, Any] = setting({}, "Keyword arguments of the model, as JSON.")
    optimizer: str = setting("sgd", "Any optimizer of torch.optim, or module:factory.")
    optimizer_args: dict[str, Any] = setting(
        {}, "Further keyword arguments of the optimizer, as JSON."
    )
    momentum: float = setting(
        0.9, "Momentum, or Adam's beta1, of an optimizer that has it.", minimum=0, below=1
    )
    weight_decay: float = setting(
        1e-4,
        "Weight decay of an optimizer that has it: decoupled in adamw, an L2 penalty in most.",
        minimum=0,
    )
    loss: str | None = setting(
        None,
        "Loss class of torch.nn, such as HuberLoss, or module:factory; none: CrossEntropyLoss for "
        "classes, MSELoss for numbers.",
    )
    loss_args: dict[str, Any] = setting(
        {}, 'Keyword arguments of the loss, as JSON: {"label_smoothing": 0.1}.'
    )
    l2: float = setting(
        0.0,
        "L2 penalty on the weights of linear and convolutional layers, added to the loss.",
        minimum=0,
    )
    batch_size: int = setting(64, "Examples in a batch.", minimum=1)
    augment: str = setting("none", "Augmentation of training images.", choices=AUGMENTATIONS)
    normalize: bool = setting(
        True, "Bring every channel to mean 0 and deviation 1; false: images are scaled to 0 … 1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name("optimizer", self.optimizer.lower(), OPTIMIZERS)
        if self.loss is not None:
            require_name("loss", self.loss, LOSSES)


def builtin_setup(
    options: BuiltinOptions,
    data: Data,
    device: torch.device,
    data_seed: int = 0,
    loader_workers: int = 0,
) -> Setup:
    """Return the setup of ``options`` on ``data``, whose splits in memory are on ``device``.

    The training loss is that of ``loss``; with ``l2`` above 0, plus ``l2`` times the sum of squares
    of all trainable weights of linear and convolutional layers, as Keras' kernel regularisers add
    it (no biases, no norm layers; a weight that layers share counts once). So the recorded training
    loss includes the penalty, and so does the gradient that is clipped.
    """
    model = build_model(options.model, options.model_args, data.input_shape, data.outputs)
    classes, l2 = data.num_classes is not None, options.l2
    loss = options.loss or ("CrossEntropyLoss" if classes else "MSELoss")
    make_loss = load_factory("loss", loss) if is_factory(loss) else LOSSES[loss]
    loss_fn = call("loss", loss, make_loss, options.loss_args)
    require(
        l2 == 0 or bool(_kernels(model)),
        f"l2={l2} has no effect, model {options.model!r} has no trainable linear or convolutional "
        "torch layer: use l2=0 and weight_decay",
    )

    batches = partial(
        Batches,
        data,
        options.batch_size,
        device,
        augment=options.augment,
        normalize=options.normalize,
        loader_workers=loader_workers,
    )

    def penalised(model: nn.Module, batch: Any) -> Tensor:
        # One vector, so that the cost does not grow with the number of layers.
        kernels = torch.cat([kernel.flatten() for kernel in _kernels(model)])
        return batch_loss_of(model, loss_fn)(batch) + l2 * kernels.square().sum()

    def deployed(model: nn.Module) -> Deployed:
        split = data.val
        if isinstance(split, tuple):
            example = split[0][:2].cpu()
        else:
            example = torch.stack([split[index][0] for index in range(min(2, data.sizes[1]))])
        return nn.Sequential(copy.deepcopy(val_batches.preprocessing), model), example

    val_batches = batches(train=False)
    return Setup(
        model=model,
        optimizer=build_optimizer(
            options.optimizer,
            model.parameters(),
            options.momentum,
            options.weight_decay,
            options.optimizer_args,
            device,
        ),
        train_batches=batches(train=True, seed=data_seed),
        val_batches=val_batches,
        loss_fn=loss_fn,
        batch_loss=penalised if l2 > 0 else None,
        metrics={"accuracy": (_accuracy, "max")} if classes else {"mae": (F.l1_loss, "min")},
        probe=val_batches.representative,
        data_digest=data.digest,
        deployed=deployed,
    )


def _accuracy(output: Tensor, labels: Tensor) -> Tensor:
    return (output.argmax(dim=1) == labels).float().mean()


def _kernels(model: nn.Module) -> list[Tensor]:
    """Return the trainable weights of linear and convolutional layers, each once."""
    kernels = (
        layer.weight for layer in model.modules() if isinstance(layer, weights.KERNEL_LAYERS)
    )
    return list({id(kernel): kernel for kernel in kernels if kernel.requires_grad}.values())
