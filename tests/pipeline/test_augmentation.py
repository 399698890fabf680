from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from pipeline.augmentation import AUGMENTATIONS

crop_flip = AUGMENTATIONS["crop-flip"]
SHIFTS = range(9)  # top left corner of the crop inside an image padded by 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(n: int, height: int, width: int) -> torch.Tensor:
    """Images of which no two pixels are equal; the second channel is the first, negated."""
    first = torch.arange(n * height * width, dtype=torch.float32).reshape(n, 1, height, width) + 1
    return torch.cat([first, -first], dim=1)


def found(padded: torch.Tensor, output: torch.Tensor) -> list[tuple[int, int, bool]]:
    """The crops of one padded image ``[c, h + 8, w + 8]`` that are ``output`` in every pixel."""
    _, height, width = output.shape
    crops = {
        (row, column): padded[:, row : row + height, column : column + width]
        for row in SHIFTS
        for column in SHIFTS
    }
    return [
        (*corner, flipped)
        for corner, crop in crops.items()
        for flipped in (False, True)
        if torch.equal(crop.flip(2) if flipped else crop, output)
    ]


def test_every_output_is_one_crop_of_the_image_padded_by_reflection():
    # So wide that no flipped crop equals another crop that is not.
    images = numbered(400, 7, 10)
    outputs = crop_flip(images, seeded(0))
    padded = pad(images, (4, 4, 4, 4), mode="reflect")

    assert outputs.shape == images.shape
    crops = [found(*pair) for pair in zip(padded, outputs, strict=True)]
    assert all(len(crop) == 1 for crop in crops)
    rows, columns, flips = zip(*(crop[0] for crop in crops), strict=True)
    # Of 400 draws out of nine, none is missing but with a probability below 10^-18.
    assert set(rows) == set(columns) == set(SHIFTS)
    # Half of 400, within five standard deviations of 10.
    assert 150 <= sum(flips) <= 250


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5), (1, 4), (1, 1)])
def test_images_smaller_than_the_padding_are_reflected_again_and_again(height, width):
    images = numbered(60, height, width)
    outputs = crop_flip(images, seeded(1))

    for image, output in zip(images, outputs, strict=True):
        assert torch.isin(output, image).all()
        padded = np.pad(image.numpy(), [(0, 0), (4, 4), (4, 4)], mode="reflect")
        assert found(torch.from_numpy(padded), output)


def test_bytes_stay_bytes():
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=seeded(2))

    assert crop_flip(images, seeded(3)).dtype == torch.uint8


def test_the_same_seed_draws_the_same_crops_and_another_seed_others():
    images = numbered(50, 8, 8)
    first = crop_flip(images, seeded(5))

    assert torch.equal(crop_flip(images, seeded(5)), first)
    assert not torch.equal(crop_flip(images, seeded(6)), first)


def test_the_next_call_draws_other_crops():
    images, generator = numbered(50, 8, 8), seeded(5)

    assert not torch.equal(crop_flip(images, generator), crop_flip(images, generator))


def test_the_input_and_the_global_random_state_are_left_alone():
    images = numbered(10, 8, 8)
    state = torch.get_rng_state()
    crop_flip(images, seeded(0))

    assert torch.equal(images, numbered(10, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_images_give_the_same_crops():
    images = numbered(30, 8, 8)
    last = images.to(memory_format=torch.channels_last)

    assert torch.equal(crop_flip(last, seeded(0)), crop_flip(images, seeded(0)))


def test_none_is_no_function():
    assert AUGMENTATIONS["none"] is None
