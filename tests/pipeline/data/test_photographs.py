from __future__ import annotations

import socket
import sys

import numpy as np
import pytest
import torch
from skimage import data as skimage_data

from pipeline.data.datasets import load_data
from pipeline.data.photographs import PHOTOGRAPHS, load_photographs
from pipeline.data.splits import Data
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime, Task


def load(**arguments) -> Data:
    return load_data("photographs", arguments, "nowhere")


def photograph(label: int) -> np.ndarray:
    image = getattr(skimage_data, PHOTOGRAPHS[label])()
    return image[0] if isinstance(image, tuple) else image


def corners(image: np.ndarray, patch: torch.Tensor) -> list[tuple[int, int]]:
    """Everywhere in the photograph ``[h, w, 3]`` where the patch ``[3, size, size]`` is found."""
    size = patch.shape[-1]
    whole, part = (
        pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        for pixels in (image, patch.permute(1, 2, 0).numpy())
    )
    # By its brightest pixel first: dark ones are everywhere.
    row, column = np.unravel_index(part.argmax(), part.shape)
    height, width = (side - size + 1 for side in whole.shape)
    candidates = whole[row : row + height, column : column + width] == part[row, column]
    return [
        (top, left)
        for top, left in np.argwhere(candidates).tolist()
        if np.array_equal(whole[top : top + size, left : left + size], part)
    ]


def test_there_are_2048_patches_for_training_and_512_for_validation():
    made = load()

    assert made.num_classes == 8
    for split, n in ((made.train, 2048), (made.val, 512)):
        images, labels = split
        assert images.dtype == torch.uint8
        assert images.shape == (n, 3, 32, 32)
        assert torch.bincount(labels).tolist() == [n // 8] * 8


def test_a_patch_is_a_piece_of_its_photograph_from_where_no_patch_of_the_other_split_is():
    # Nor is any pixel in patches of both splits. So large that a patch fills most of a cell.
    made = load(per_image=10, size=56)
    for label in map(PHOTOGRAPHS.index, ("astronaut", "chelsea", "coffee")):
        image = photograph(label)
        covered = []
        for images, labels in (made.train, made.val):
            mask = np.zeros(image.shape[:2], dtype=bool)
            for patch in images[labels == label]:
                found = corners(image, patch)
                assert found
                if len(found) == 1:
                    ((top, left),) = found
                    mask[top : top + 56, left : left + 56] = True
            assert mask.any()
            covered.append(mask)
        assert not (covered[0] & covered[1]).any()


def test_the_mean_and_deviation_are_those_of_the_training_patches():
    made = load(per_image=20)
    channels = made.train[0].numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255

    assert made.mean == pytest.approx(channels.mean(axis=1))
    assert made.std == pytest.approx(channels.std(axis=1, ddof=1))


def test_the_same_seed_gives_the_same_patches_and_another_others():
    assert load(per_image=10).digest == load(per_image=10).digest
    assert load(per_image=10).digest != load(per_image=10, seed=1).digest


def test_size_and_number_are_those_that_are_given():
    made = load(size=60, per_image=5)

    assert made.train[0].shape == (32, 3, 60, 60)
    assert made.val[0].shape == (8, 3, 60, 60)


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(per_image=5).sizes == (32, 8)


def test_a_residual_network_takes_them():
    task = Task(dataset="photographs", dataset_args={"per_image": 10}, model="resnet20")

    assert PreparedTask(task, Runtime(device="cpu")).data.input_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 61}, ("size=61", "60 pixels")),
        ({"size": 0}, ("size=0", "raise")),
        ({"per_image": 4}, ("'per_image': 4", "dataset_args")),
        ({"seed": -1}, ("'seed': -1", "dataset_args")),
        ({"sise": 32}, ("sise", "dataset_args")),
    ],
)
def test_arguments_that_cannot_be_used_are_named(complains, arguments, words):
    with complains(*words):
        load(**arguments)


def test_without_scikit_image_the_extra_is_named(complains, monkeypatch):
    # What an import finds for a package that is not there.
    monkeypatch.setitem(sys.modules, "skimage", None)
    with complains("scikit-image", "lrrt-stage[photos]"):
        load_photographs("")
