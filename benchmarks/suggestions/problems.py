"""The problems: a data set, a model, an optimizer, a batch size. Half for development."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.suggestions import data
from benchmarks.suggestions.models import Attention, cnn, image_to_image, mlp
from lrrt_stage import initialize, seeded
from pipeline.optimizers import build_optimizer

__all__ = ["PROBLEMS", "Problem"]


def per_token(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all places of all sequences."""
    return cross_entropy(output.flatten(0, 1), target.flatten())


@dataclass(frozen=True)
class Problem:
    """What is trained, and how; ``own`` initial weights are the constructor's."""

    data: Callable[[], data.Split]
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: str
    batch_size: int
    epochs: int
    init: str = "own"
    held_back: bool = False

    def start(self, seed: int) -> tuple[nn.Module, Optimizer, DataLoader]:
        """Return the initial model, its optimizer and the batches, the same for the same seed."""
        with seeded(seed):
            model = self.model()
        if self.init != "own":
            initialize(model, self.init, seed)
        optimizer = build_optimizer(self.optimizer, model.parameters(), 0.9, 1e-4)
        return model, optimizer, self.batches(seed)

    def batches(self, seed: int) -> DataLoader:
        """Return the training batches: shuffled anew at every pass, the last incomplete one left out."""
        examples = TensorDataset(*self.data().train)
        sampler = RandomSampler(examples, generator=torch.Generator().manual_seed(seed))
        return DataLoader(
            examples, sampler=BatchSampler(sampler, self.batch_size, True), batch_size=None
        )

    def evaluate(self, model: nn.Module) -> float:
        """Return the mean loss over the validation split, in eval mode."""
        inputs, targets = self.data().val
        model.eval()
        with torch.no_grad():
            return float(self.loss_fn(model(inputs), targets))


PROBLEMS = {
    "digits-cnn-sgd-64": Problem(
        data.digits, partial(cnn, 1, 10), cross_entropy, "sgd", 64, 10, "kaiming_uniform"
    ),
    "patches-cnn_bn-sgd-128": Problem(
        data.patches, partial(cnn, 3, 8, norm=True), cross_entropy, "sgd", 128, 10
    ),
    "digits-mlp-adam-32": Problem(data.digits, partial(mlp, 64, 10), cross_entropy, "adam", 32, 5),
    "visits-mlp-adamw-256": Problem(
        data.doctor_visits, partial(mlp, 9, 1), mse_loss, "adamw", 256, 5
    ),
    "diabetes-mlp-sgd-16": Problem(data.diabetes, partial(mlp, 10, 1, 64), mse_loss, "sgd", 16, 10),
    "text-attention-adamw-32": Problem(
        data.text, partial(Attention, 32, 128, causal=True), per_token, "adamw", 32, 1
    ),
    "cancer-mlp-adam-16": Problem(data.cancer, partial(mlp, 30, 2, 64), cross_entropy, "adam", 16, 5),
    "denoising-cnn-adam-64": Problem(data.denoising, image_to_image, mse_loss, "adam", 64, 5),
    "patches-cnn-adam-64": Problem(
        data.patches, partial(cnn, 3, 8), cross_entropy, "adam", 64, 10, held_back=True
    ),
    "digits-cnn_bn-adamw-16": Problem(
        data.digits, partial(cnn, 1, 10, norm=True), cross_entropy, "adamw", 16, 3, held_back=True
    ),
    "patches-mlp-sgd-256": Problem(
        data.patches, partial(mlp, 768, 8), cross_entropy, "sgd", 256, 20, held_back=True
    ),
    "fair-mlp_bn-sgd-32": Problem(
        data.fair, partial(mlp, 8, 2, 64, norm=True), cross_entropy, "sgd", 32, 3, held_back=True
    ),
    "gapminder-mlp-adam-16": Problem(
        data.gapminder, partial(mlp, 8, 1, 64), mse_loss, "adam", 16, 5, held_back=True
    ),
    "digits-attention-sgd-64": Problem(
        data.digits, partial(Attention, 8, 10, 8), cross_entropy, "sgd", 64, 10, held_back=True
    ),
    "text-attention-adam-128": Problem(
        data.text, partial(Attention, 32, 128, causal=True), per_token, "adam", 128, 3,
        held_back=True,
    ),
    "denoising-cnn_bn-sgd-32": Problem(
        data.denoising, partial(image_to_image, norm=True), mse_loss, "sgd", 32, 5, held_back=True
    ),
}
"""Name -> problem; the name says data, model, optimizer and batch size."""
