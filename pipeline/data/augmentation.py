"""Augmentation as tensor code on the device.

Random numbers come from a CPU generator, so that a seed draws the same crops on every device. Each
rank draws those of the whole batch, and uses those of its part, so that it draws the same crops
with any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.ranks.share import ALONE, Share

__all__ = ["AUGMENTATIONS"]

PADDING = 4
SHIFT_PARTS = 10
"""Images are shifted by up to 1 / ``SHIFT_PARTS`` of their height and width."""


Augmentation = Callable[[Tensor, torch.Generator, Share], Tensor]
"""A function of images ``[n, c, h, w]``, which are a rank's part of a batch, of a CPU generator and
of which part it is."""


def crop_flip(images: Tensor, generator: torch.Generator, share: Share = ALONE) -> Tensor:
    """Reflect-pad by 4, crop at random, flip left-right half of the time; ``[n, c, h, w]``."""
    n, _, height, width = images.shape
    rows = _reflected(_shifts(n, PADDING, generator, share) + torch.arange(height), height)
    columns = _reflected(_shifts(n, PADDING, generator, share) + torch.arange(width), width)
    return _picked(images, rows, columns, generator, share)


def shift_flip(images: Tensor, generator: torch.Generator, share: Share = ALONE) -> Tensor:
    """Shift by up to 10 %, repeat the edge, flip left-right half of the time; ``[n, c, h, w]``.

    Shifts are whole pixels, at most a tenth of height and width rounded down, so an image of
    fewer than 10 pixels is only flipped. This is Keras' ``fill_mode="nearest"``, without
    interpolation between pixels.
    """
    n, _, height, width = images.shape
    rows, columns = (
        (_shifts(n, size // SHIFT_PARTS, generator, share) + torch.arange(size)).clamp(0, size - 1)
        for size in (height, width)
    )
    return _picked(images, rows, columns, generator, share)


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "shift-flip": shift_flip,
}
"""Name -> :data:`Augmentation`, or None."""


def _shifts(n: int, most: int, generator: torch.Generator, share: Share) -> Tensor:
    return share.of(torch.randint(-most, most + 1, (n * share.size, 1), generator=generator))


def _picked(
    images: Tensor, rows: Tensor, columns: Tensor, generator: torch.Generator, share: Share
) -> Tensor:
    """Return the pixels at ``rows`` ``[n, h]`` and ``columns`` ``[n, w]`` of every image.

    Half of the images are flipped left-right.
    """
    drawn = torch.rand(len(images) * share.size, 1, generator=generator)
    flipped = share.of(drawn) < 0.5
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
