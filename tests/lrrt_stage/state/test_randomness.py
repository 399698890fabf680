import random

import numpy as np
import pytest
import torch

from lrrt_stage import preserved_randomness, seeded


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()


def test_a_seeded_block_draws_the_same_again_and_leaves_the_outside_alone():
    with preserved_randomness():
        expected = draw()
    with seeded(3):
        first = draw()
    with seeded(3):
        assert draw() == first
    with seeded(4):
        assert draw() != first
    assert draw() == expected


def test_the_state_is_restored_after_an_exception():
    with preserved_randomness():
        expected = draw()
    with pytest.raises(KeyError), seeded(0):
        draw()
        raise KeyError
    assert draw() == expected
