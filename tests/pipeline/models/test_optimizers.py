from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.optimizers import build_optimizer

BY_HAND = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05, betas=(0.8, 0.999), weight_decay=0.01),
    "adamw": lambda params: torch.optim.AdamW(
        params, lr=0.05, betas=(0.8, 0.999), weight_decay=0.01
    ),
}


def trained(make) -> torch.Tensor:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = make([parameter])
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    for _ in range(5):
        optimizer.zero_grad()
        (parameter**4).sum().backward()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", BY_HAND)
def test_steps_are_those_of_torch_with_momentum_and_decay(name):
    ours = trained(lambda params: build_optimizer(name, params, momentum=0.8, weight_decay=0.01))

    assert torch.equal(ours, trained(BY_HAND[name]))


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_may_come_from_an_iterator(name):
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(name, model.parameters(), 0.9, 0.0)

    assert [p.shape for g in optimizer.param_groups for p in g["params"]] == [(2, 3), (2,)]


@pytest.mark.parametrize("name", BY_HAND)
def test_kernels_are_not_fused_on_the_cpu(name):
    optimizer = build_optimizer(name, nn.Linear(3, 2).parameters(), 0.9, 0.0)

    assert not optimizer.param_groups[0]["fused"]
