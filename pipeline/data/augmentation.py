"""Augmentation as tensor code on the device.

Random numbers come from a CPU generator, so that a seed draws the same crops on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["AUGMENTATIONS"]

PADDING = 4
SHIFT_PARTS = 10
"""Images are shifted by up to 1 / ``SHIFT_PARTS`` of their height and width."""


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reflect-pad by 4, crop at random, flip left-right half of the time; ``[n, c, h, w]``."""
    n, _, height, width = images.shape
    rows = _reflected(_shifts(n, PADDING, generator) + torch.arange(height), height)
    columns = _reflected(_shifts(n, PADDING, generator) + torch.arange(width), width)
    return _picked(images, rows, columns, generator)


def shift_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 10 %, repeat the edge, flip left-right half of the time; ``[n, c, h, w]``.

    Shifts are whole pixels, at most a tenth of height and width rounded down, so an image of
    fewer than 10 pixels is only flipped. This is Keras' ``fill_mode="nearest"``, without
    interpolation between pixels.
    """
    n, _, height, width = images.shape
    rows, columns = (
        (_shifts(n, size // SHIFT_PARTS, generator) + torch.arange(size)).clamp(0, size - 1)
        for size in (height, width)
    )
    return _picked(images, rows, columns, generator)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "shift-flip": shift_flip,
}
"""Name -> function of images ``[n, c, h, w]`` and a CPU generator, or None."""


def _shifts(n: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-most, most + 1, (n, 1), generator=generator)


def _picked(images: Tensor, rows: Tensor, columns: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pixels at ``rows`` ``[n, h]`` and ``columns`` ``[n, w]`` of every image.

    Half of the images are flipped left-right.
    """
    flipped = torch.rand(len(images), 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    row = rows.to(images.device, non_blocking=True)[:, :, None]
    column = columns.to(images.device, non_blocking=True)[:, None, :]
    # Index dimensions around a slice come first: [n, h, w, c].
    return images[image, :, row, column].permute(0, 3, 1, 2).contiguous()


def _reflected(index: Tensor, size: int) -> Tensor:
    """Return ``index`` folded back into 0 … size - 1 at both ends, without repeating the edge."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)
