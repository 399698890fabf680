"""The built-in models. Each is one function in :data:`MODELS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrrt_stage.errors import LRRTError, describe, first_line, unknown_name
from lrrt_stage.settings import require
from lrrt_stage.state.preserve import require_no_lazy
from pipeline.data.factories import call, call_factory
from pipeline.data.names import is_factory

__all__ = ["MODELS", "build_model", "check_output"]

Shape = tuple[int, ...]
SHORTCUTS = ("identity", "projection", "convolution")


def build_model(
    name: str, arguments: Mapping[str, Any], input_shape: Shape, num_classes: int
) -> nn.Module:
    """Return a new model for inputs of ``input_shape`` (without the batch) and ``num_classes``.

    ``name`` is one of :data:`MODELS`, a torchvision classifier, or ``package.module:factory``
    (which is called with ``arguments`` only and returns an ``nn.Module``). The constructor draws
    random numbers from the global random state.
    """
    if is_factory(name):
        made = call_factory("model", name, arguments)
        require(
            isinstance(made, nn.Module),
            f"model {name!r} returned {describe(made)}: return a torch.nn.Module, not its class, "
            "its weights or several objects",
        )
        require_no_lazy(made, f"model {name!r}")
        require(
            any(parameter.requires_grad for parameter in made.parameters()),
            f"model {name!r} has no trainable parameter: set requires_grad on some, and have the "
            "constructor make all of them (give the shape of the inputs there)",
        )
        return made
    function = MODELS.get(name) or partial(_torchvision_model, name)
    return call("model", name, function, arguments, input_shape, num_classes)


def cnn(input_shape: Shape, num_classes: int, width: int = 32) -> nn.Module:
    """Three 3 × 3 convolutions with batch norm, two of them followed by pooling, to 2 × 2."""
    channels = _image_channels("cnn", input_shape)
    halved = [side // 2 for side in input_shape[1:]]
    require(
        min(halved) >= 2,
        f"model 'cnn' takes images of at least 4 × 4, not {input_shape[1:]}: use mlp",
    )
    # Instead of AdaptiveMaxPool2d(2), whose gradient on CUDA is not deterministic.
    window = tuple(side // 2 for side in halved)
    pooled = prod(side // size for side, size in zip(halved, window, strict=True))

    def block(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *block(channels, width),
        *block(width, 2 * width),
        nn.MaxPool2d(2),
        *block(2 * width, 4 * width),
        nn.MaxPool2d(window),
        nn.Flatten(),
        nn.Linear(4 * width * pooled, num_classes),
    )


def mlp(input_shape: Shape, num_classes: int, width: int = 256, depth: int = 2) -> nn.Module:
    """``depth`` hidden layers of ``width`` rectified units."""
    widths = [prod(input_shape), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


class _ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, shortcut: str) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.added_channels = stride, after - before
        self.projection: nn.Module | None = None
        if shortcut != "identity" and stride == 2:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            norm = [nn.BatchNorm2d(after)] if shortcut == "projection" else []
            self.projection = nn.Sequential(convolution, *norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))


def cifar_resnet(
    input_shape: Shape, num_classes: int, depth: int, shortcut: str = "identity"
) -> nn.Module:
    """The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, §4.2), depth 6n + 2.

    ``shortcut`` is used where the size changes: ``identity`` subsamples and pads with zero
    channels (option A, the paper's for CIFAR), ``projection`` is a 1 × 1 convolution with batch
    norm (option B), and ``convolution`` the same without batch norm (keras.io's ResNet v1, and
    the two variants that *The Learning Rate Black Magic* measured).
    """
    if shortcut not in SHORTCUTS:
        raise unknown_name("shortcut", shortcut, SHORTCUTS)
    channels = _image_channels(f"resnet{depth}", input_shape)
    n = (depth - 2) // 6
    widths = [16, *[16] * n, *[32] * n, *[64] * n]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *(_ResidualBlock(a, b, shortcut) for a, b in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    **{f"resnet{depth}": partial(cifar_resnet, depth=depth) for depth in (20, 32, 44, 56, 110)},
}
"""Name -> function of input shape, number of classes and keyword arguments."""


def _torchvision_model(
    name: str, input_shape: Shape, num_classes: int, **arguments: Any
) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown_name("model", name, [*MODELS, *names, "package.module:factory"])
    model = torchvision.models.get_model(
        name, weights=None, **{"num_classes": num_classes, **arguments}
    )
    channels = _image_channels(name, input_shape)
    if channels != 3:
        # Give the first convolution, which is made for RGB, the data's number of channels.
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        first.in_channels = channels
        first.weight = nn.Parameter(torch.empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()
    return model


def _image_channels(name: str, input_shape: Shape) -> int:
    require(
        len(input_shape) == 3,
        f"model {name!r} takes images (channels, height, width), the data has {input_shape}: "
        "use mlp or a factory of your own",
    )
    return input_shape[0]


def check_output(
    model: nn.Module, inputs: Tensor, outputs: int, name: str, classes: bool = True
) -> None:
    """Check that ``model`` returns ``outputs`` numbers for each of ``inputs``.

    These are a logit per class, of which there may be more, or as many numbers as targets.
    """
    try:
        output = model(inputs)
    except Exception as error:
        raise LRRTError(
            f"model {name!r} does not take inputs of shape {tuple(inputs.shape[1:])} "
            f"({first_line(error)}): choose another model, model_args or image size, or raise "
            "batch_size (batch norm needs two examples)"
        ) from error
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    fits = isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] >= outputs
    what = "a logit per class" if classes else "a number per target"
    require(
        fits and (classes or output.shape[1] == outputs),
        f"model {name!r} returns {got} for {len(inputs)} inputs, expected ({len(inputs)}, "
        f"{outputs}), {what}: set its number of classes or outputs",
    )
    rows = output.detach().float()
    if (
        classes
        and not model.training
        and bool((rows >= 0).all())
        and float((rows.sum(1) - 1).abs().max()) < 1e-4
    ):
        warnings.warn(
            f"model {name!r} returns numbers that add up to 1, as a softmax does: remove the "
            "softmax from the model, since the loss takes logits and applies its own",
            stacklevel=2,
        )
