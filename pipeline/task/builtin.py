"""The built-in setup: a dataset, a model, an optimizer, and a loss, each by name."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrrt_stage.measure.step import batch_loss_of
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from lrrt_stage.state.tensors import is_sharded, local_shard
from pipeline.data.batches import Batches
from pipeline.data.factories import call, load_factory
from pipeline.data.names import is_factory
from pipeline.data.splits import Data
from pipeline.models.losses import LOSSES
from pipeline.models.networks import build_model
from pipeline.models.optimizers import build_optimizer
from pipeline.ranks.share import ALONE, Share
from pipeline.task.setup import Deployed, Setup
from pipeline.task.tasks import BuiltinOptions

__all__ = ["builtin_setup"]


def builtin_setup(
    options: BuiltinOptions,
    data: Data,
    device: torch.device,
    data_seed: int = 0,
    loader_workers: int = 0,
    share: Share = ALONE,
) -> Setup:
    """Return the setup of ``options`` on ``data``, whose splits in memory are on ``device``.

    Of its training batches, each is the part ``share``.

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
        share=share,
    )

    def penalised(model: nn.Module, batch: Any) -> Tensor:
        # The loss first: FSDP adds to the gradients that are there when it gets to a layer.
        loss, kernels = batch_loss_of(model, loss_fn)(batch), _kernels(model)
        # One vector, so that the cost does not grow with the number of layers.
        squares = torch.cat([local_shard(kernel).flatten() for kernel in kernels]).square().sum()
        if is_sharded(kernels[0]):
            # The mean of the losses has to hold the squares of all ranks. A gradient of a part is
            # that of its own squares: it goes past FSDP, which averages the others.
            squares = squares + (torch.distributed.get_world_size() - 1) * squares.detach()
        return loss + l2 * squares

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
