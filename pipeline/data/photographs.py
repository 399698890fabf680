"""Patches of photographs that scikit-image ships: real colour images without a download."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require
from pipeline.data.splits import Data, channel_statistics

__all__ = ["PHOTOGRAPHS", "load_photographs"]

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
"""The colour photographs among scikit-image's functions whose files are inside its wheel."""

GRID = 5
"""Rows and columns of cells into which a photograph is divided."""


def load_photographs(_: str, size: int = 32, per_image: int = 320, seed: int = 0) -> Data:
    """Patches of scikit-image's eight photographs, labelled by the photograph; no download.

    Every photograph is divided into 5 × 5 cells. One cell of every row and every column is for
    validation. A patch lies inside one cell, so no pixel is in both splits.

    Parameters
    ----------
    size
        Height and width of a patch in pixels, at most 60, the size of the smallest cell.
    per_image
        Patches of one photograph at random positions: four fifths for training, one for
        validation. The defaults make 2,048 and 512 patches of 32 × 32.
    seed
        Seed of the positions.
    """
    require(size >= 1, f"photographs: size={size} must be at least 1: raise it")
    generator = np.random.default_rng(seed)
    held = per_image // GRID
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    for image in _photographs():
        train_cells, val_cells = _cells(image)
        train += _patches(train_cells, size, per_image - held, generator)
        val += _patches(val_cells, size, held, generator)
    images, labels = _split(train, per_image - held)
    return Data((images, labels), _split(val, held), len(PHOTOGRAPHS), *channel_statistics(images))


def _photographs() -> Iterator[np.ndarray]:
    try:
        from skimage import data
    except ImportError as error:
        raise LRRTError(
            f"dataset 'photographs' needs scikit-image ({error}): install lrrt-stage[photos]"
        ) from None
    for name in PHOTOGRAPHS:
        image = getattr(data, name)()
        # The motorcycle is a tuple of left image, right image and disparity.
        yield image[0] if isinstance(image, tuple) else image


def _cells(image: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the cells of an image ``[h, w, 3]`` for training and for validation."""
    ends = [np.linspace(0, side, GRID + 1).astype(int)[1:-1] for side in image.shape[:2]]
    rows = [np.split(row, ends[1], axis=1) for row in np.split(image, ends[0])]
    # A knight's move from row to row spreads the validation cells over the photograph.
    val = [cells.pop(2 * index % GRID) for index, cells in enumerate(rows)]
    return [cell for cells in rows for cell in cells], val


def _patches(
    cells: list[np.ndarray], size: int, n: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return ``n`` patches ``[size, size, 3]``, taken from the cells in turn."""
    smallest = min(min(cell.shape[:2]) for cell in cells)
    require(
        size <= smallest,
        f"photographs: size={size} is larger than a cell of {smallest} pixels: lower it",
    )
    patches = []
    for k in range(n):
        cell = cells[k % len(cells)]
        top, left = (int(generator.integers(side - size + 1)) for side in cell.shape[:2])
        patches.append(cell[top : top + size, left : left + size])
    return patches


def _split(patches: list[np.ndarray], per_image: int) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
    return images, torch.arange(len(PHOTOGRAPHS)).repeat_interleave(per_image)
