from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from pipeline.data.augmentation import AUGMENTATIONS

crop_flip = AUGMENTATIONS["crop-flip"]
shift_flip = AUGMENTATIONS["shift-flip"]
BOTH = pytest.mark.parametrize("augment", [crop_flip, shift_flip], ids=["crop-flip", "shift-flip"])
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
    images = numbered(200, 7, 10)
    outputs = crop_flip(images, seeded(0))
    padded = pad(images, (4, 4, 4, 4), mode="reflect")

    assert outputs.shape == images.shape
    crops = [found(*pair) for pair in zip(padded, outputs, strict=True)]
    assert all(len(crop) == 1 for crop in crops)
    rows, columns, flips = zip(*(crop[0] for crop in crops), strict=True)
    # A value is missing from 200 draws out of nine with a probability below 10^-8.
    assert set(rows) == set(columns) == set(SHIFTS)
    # Half of 200, within five standard deviations of 7.1.
    assert 65 <= sum(flips) <= 135


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5), (1, 4), (1, 1)])
def test_images_smaller_than_the_padding_are_reflected_again_and_again(height, width):
    images = numbered(60, height, width)
    outputs = crop_flip(images, seeded(1))

    for image, output in zip(images, outputs, strict=True):
        assert torch.isin(output, image).all()
        padded = np.pad(image.numpy(), [(0, 0), (4, 4), (4, 4)], mode="reflect")
        assert found(torch.from_numpy(padded), output)


def moved(image: torch.Tensor, down: int, right: int, flip: bool) -> torch.Tensor:
    """The image padded by its edge and cut again where a shift would have taken it."""
    _, height, width = image.shape
    padded = pad(image[None], (4, 4, 4, 4), mode="replicate")[0]
    cut = padded[:, 4 - down : 4 - down + height, 4 - right : 4 - right + width]
    return cut.flip(2) if flip else cut


def test_every_output_is_the_image_shifted_by_a_tenth_at_most_with_its_edge_repeated():
    # A tenth is 1.2 rows and 3.1 columns; a shift goes up to 1 and to 3.
    images = numbered(150, 12, 31)
    outputs = shift_flip(images, seeded(0))
    assert outputs.shape == images.shape

    shifts = [(d, r, f) for d in range(-2, 3) for r in range(-4, 5) for f in (False, True)]
    seen = []
    for image, output in zip(images, outputs, strict=True):
        candidates = [each for each in shifts if torch.equal(moved(image, *each), output)]
        assert len(candidates) == 1
        seen += candidates
    rows, columns, flips = zip(*seen, strict=True)
    # A value is missing from 150 draws out of seven with a probability below 10^-8.
    assert set(rows) == {-1, 0, 1}
    assert set(columns) == {-3, -2, -1, 0, 1, 2, 3}
    # Half of 150, within five standard deviations of 6.1.
    assert 45 <= sum(flips) <= 105


def test_an_image_below_ten_pixels_is_flipped_and_not_shifted():
    images = numbered(40, 8, 8)
    outputs = shift_flip(images, seeded(0))

    same = [torch.equal(*pair) for pair in zip(images, outputs, strict=True)]
    mirrored = [torch.equal(*pair) for pair in zip(images.flip(3), outputs, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(mirrored) < 40


@BOTH
def test_bytes_stay_bytes(augment):
    images = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8, generator=seeded(2))

    assert augment(images, seeded(3)).dtype == torch.uint8


@BOTH
def test_the_same_seed_draws_the_same_images_and_another_seed_others(augment):
    images = numbered(50, 12, 12)
    first = augment(images, seeded(5))

    assert torch.equal(augment(images, seeded(5)), first)
    assert not torch.equal(augment(images, seeded(6)), first)


@BOTH
def test_the_next_call_draws_others(augment):
    images, generator = numbered(50, 12, 12), seeded(5)

    assert not torch.equal(augment(images, generator), augment(images, generator))


@BOTH
def test_the_input_and_the_global_random_state_are_left_alone(augment):
    images = numbered(10, 12, 12)
    state = torch.get_rng_state()
    augment(images, seeded(0))

    assert torch.equal(images, numbered(10, 12, 12))
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_channels_last_images_give_the_same_images(augment):
    images = numbered(30, 12, 12)
    last = images.to(memory_format=torch.channels_last)

    assert torch.equal(augment(last, seeded(0)), augment(images, seeded(0)))


def test_none_is_no_function():
    assert AUGMENTATIONS["none"] is None
