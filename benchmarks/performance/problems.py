"""The networks and the data that steps are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.performance.baselines.bare_loop import Shuffled, bare_loop
from lrrt_stage import range_test, seeded
from pipeline import ValidationOptions
from pipeline.data.datasets import load_data
from pipeline.models.networks import build_model

__all__ = ["Problem", "digits_problem", "resnet_problem", "tiny_problem"]


@dataclass
class Problem:
    """A model, its optimizer, and examples on a device."""

    model: nn.Module
    optimizer: Optimizer
    inputs: Tensor
    targets: Tensor
    batch_size: int
    device: torch.device

    @property
    def batches(self) -> Shuffled:
        """Batches that are cut from tensors on the device."""
        return Shuffled(self.inputs, self.targets, self.batch_size)

    @property
    def loader(self) -> DataLoader:
        """The same examples in a ``DataLoader``."""
        examples = TensorDataset(self.inputs.cpu(), self.targets.cpu())
        return DataLoader(examples, self.batch_size, shuffle=True, drop_last=True)

    def probe(self) -> tuple[Tensor, Tensor]:
        """Return a batch of as many examples as a prepared task takes for its probe."""
        size = ValidationOptions().probe_size(self.batch_size)
        return self.inputs[:size], self.targets[:size]

    def bare(self, iterations: int, batches: Any = None, **options: Any) -> Callable[[], None]:
        """Return a function that runs the bare loop."""
        batches = self.batches if batches is None else batches
        loop = partial(bare_loop, self.model, self.optimizer, batches, iterations, self.device)
        return partial(_without_result, partial(loop, **options))

    def tested(self, iterations: int, batches: Any = None, **options: Any) -> Callable[[], None]:
        """Return a function that runs a range test of the same learning rates, to its end."""
        batches = self.batches if batches is None else batches
        test = partial(range_test, self.model, self.optimizer, cross_entropy, batches)
        options = {"iterations": iterations, "lr_end": 1e-3, "stop_multiple": None, **options}
        return partial(_without_result, partial(test, **options))


def _without_result(function: Callable[[], Any]) -> None:
    """Call a function; a case that returned a float would have measured itself."""
    function()


def _problem(
    model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int, device: torch.device
) -> Problem:
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return Problem(model, optimizer, inputs.to(device), targets.to(device), batch_size, device)


def digits_problem(batch_size: int, device: torch.device) -> Problem:
    """Return the network and the data that the commands use by default."""
    inputs, targets = load_data("digits", {}, "").train
    with seeded(0):
        model = build_model("cnn", {}, tuple(inputs.shape[1:]), 10)
    return _problem(model, (inputs - inputs.mean()) / inputs.std(), targets, batch_size, device)


def resnet_problem(batch_size: int, device: torch.device) -> Problem:
    """Return a ResNet-20, and random images of the size of CIFAR."""
    with seeded(0):
        inputs, targets = torch.randn(1024, 3, 32, 32), torch.randint(0, 10, (1024,))
        model = build_model("resnet20", {}, (3, 32, 32), 10)
    return _problem(model, inputs, targets, batch_size, device)


def tiny_problem(rows: int, device: torch.device) -> Problem:
    """Return a network whose step takes a fraction of a millisecond, and so many examples."""
    with seeded(0):
        inputs, targets = torch.randn(rows, 16), torch.randint(0, 10, (rows,))
        model = build_model("mlp", {"width": 32, "depth": 1}, (16,), 10)
    return _problem(model, inputs, targets, 32, device)
