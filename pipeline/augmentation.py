"""Augmentation as tensor code on the device; random numbers come from a CPU generator.

So the same seed draws the same crops on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["AUGMENTATIONS"]

PADDING = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reflect-pad by 4, crop at random, flip left-right half of the time; ``[n, c, h, w]``."""
    n, _, height, width = images.shape
    rows = _reflected(_shifts(n, generator) + torch.arange(height), height)
    columns = _reflected(_shifts(n, generator) + torch.arange(width), width)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    image, row, column = (
        index.to(images.device, non_blocking=True)
        for index in (torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :])
    )
    # Index dimensions around a slice come first: [n, h, w, c].
    return images[image, :, row, column].permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop-flip": crop_flip,
}
"""Name -> function of images ``[n, c, h, w]`` and a CPU generator, or None."""


def _shifts(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-PADDING, PADDING + 1, (n, 1), generator=generator)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Return ``index`` folded back into 0 … size - 1 at both ends, without repeating the edge."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if size > 1 else index * 0
