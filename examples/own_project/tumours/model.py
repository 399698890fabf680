"""The classifier of tumours."""

from itertools import pairwise

from torch import nn


def build(width: int = 64, depth: int = 4) -> nn.Module:
    """Return a network from 30 measurements to two logits, with ``depth`` hidden layers."""
    hidden: list[nn.Module] = []
    for before, after in pairwise([30, *[width] * depth]):
        hidden += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 2))
