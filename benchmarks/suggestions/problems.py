"""The problems: a data set, a model, a loss, an optimizer, a batch size, a number of epochs.

Half of them are for development: rules may be changed by what they show. The others are held
back: they tell how good the finished rules are on problems that they were not made for. Two things
were changed by what the held-back ones showed: turned patches, which no learning rate teaches these
networks, were replaced by turned digits; and the guard allows for two standard errors, because it
had called a good training of ``fair-mlp_bn-sgd-32`` lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.suggestions import data
from benchmarks.suggestions.models import Attention, cnn, image_to_image, mlp
from lrrt_stage import LRRange, deterministic, initialize, seeded
from pipeline.models.optimizers import build_optimizer
from pipeline.task.plan import ValidationOptions
from pipeline.training.schedules import build_schedule

__all__ = ["PROBLEMS", "Earlier", "Problem", "half"]


def per_token(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all places; ``[n, length, codes]`` against ``[n, length]``."""
    return cross_entropy(output.flatten(0, 1), target.flatten())


@dataclass(frozen=True)
class Earlier:
    """The training that a network had before it is fine-tuned, by one cycle of AdamW."""

    data: Callable[[], data.Split]
    model: Callable[[], nn.Module]
    epochs: int
    head: str = ""
    """Start of the names of the parameters that are not taken over; empty: all are."""
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    peak_lr: float = 3e-3

    def weights(self) -> dict[str, Tensor]:
        """Return what is taken over from the trained network."""
        return _trained(self)


@cache
def _trained(earlier: Earlier) -> dict[str, Tensor]:
    """Train once in every process."""
    problem = Problem(earlier.data, earlier.model, earlier.loss_fn, "adamw", 64, earlier.epochs)
    model, optimizer, batches = problem.start(seed=1000)
    steps = earlier.epochs * len(batches)
    lr_range = LRRange.decade_below(earlier.peak_lr)
    schedule = build_schedule("one-cycle", optimizer, lr_range, steps)
    with deterministic():
        for _ in range(earlier.epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                earlier.loss_fn(model(inputs), targets).backward()
                optimizer.step()
                schedule.step()
    kept = {
        name: value
        for name, value in model.state_dict().items()
        if not (earlier.head and name.startswith(earlier.head))
    }
    return {name: value.detach().clone() for name, value in kept.items()}


@dataclass(frozen=True)
class Problem:
    """What is trained, and how."""

    data: Callable[[], data.Split]
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: str
    batch_size: int
    epochs: int
    init: str = "own"
    """Initial weights: the constructor's own, or a name in ``lrrt_stage.INITIALIZERS``."""
    held_back: bool = False
    trained_long: bool = True
    """Whether it is among those that are trained long too."""
    earlier: Earlier | None = None
    """The training whose network is fine-tuned; None: the initial weights are random."""

    @property
    def long_epochs(self) -> int:
        """Epochs of a long training."""
        return max(30, 3 * self.epochs)

    def start(self, seed: int) -> tuple[nn.Module, Optimizer, DataLoader]:
        """Return the initial model, its optimizer and the batches, the same for the same seed."""
        with seeded(seed):
            model = self.model()
        if self.init != "own":
            initialize(model, self.init, seed)
        if self.earlier is not None:
            model.load_state_dict(self.earlier.weights(), strict=False)
        optimizer = build_optimizer(
            self.optimizer, model.parameters(), momentum=0.9, weight_decay=1e-4
        )
        return model, optimizer, self.batches(seed)

    def batches(self, seed: int) -> DataLoader:
        """Return the training batches: shuffled at every pass, without an incomplete last one."""
        examples = TensorDataset(*self.data().train)
        sampler = RandomSampler(examples, generator=torch.Generator().manual_seed(seed))
        # A sampler of whole batches: one look into the tensors for each, not one per example.
        return DataLoader(
            examples, sampler=BatchSampler(sampler, self.batch_size, True), batch_size=None
        )

    def probe(self) -> list[Tensor]:
        """Return the batch of validation examples, evenly spaced, that a range test looks at."""
        n = len(self.data().val[0])
        size = ValidationOptions().probe_size(self.batch_size)
        places = torch.arange(size) * n // size
        return [values[places] for values in self.data().val]

    def evaluate(self, model: nn.Module) -> float:
        """Return the mean loss over the validation split, in eval mode."""
        inputs, targets = self.data().val
        model.eval()
        with torch.no_grad():
            return float(self.loss_fn(model(inputs), targets))


def half(held_back: bool) -> dict[str, Problem]:
    """Return the problems for development, or those held back, by name."""
    return {name: each for name, each in PROBLEMS.items() if each.held_back == held_back}


_classes, _numbers = cross_entropy, mse_loss
_text = partial(Attention, 32, 128, causal=True)
_held = partial(Problem, held_back=True)
_tuned = partial(Problem, trained_long=False)

PROBLEMS = {
    "digits-cnn-sgd-64": Problem(
        data.digits, partial(cnn, 1, 10), _classes, "sgd", 64, 10, "kaiming_uniform"
    ),
    "patches-cnn_bn-sgd-128": Problem(
        data.patches, partial(cnn, 3, 8, norm=True), _classes, "sgd", 128, 10
    ),
    "digits-mlp-adam-32": Problem(data.digits, partial(mlp, 64, 10), _classes, "adam", 32, 5),
    "visits-mlp-adamw-256": Problem(
        data.doctor_visits, partial(mlp, 9, 1), _numbers, "adamw", 256, 5
    ),
    "diabetes-mlp-sgd-16": Problem(data.diabetes, partial(mlp, 10, 1, 64), _numbers, "sgd", 16, 10),
    "text-attention-adamw-32": Problem(
        data.text, _text, per_token, "adamw", 32, 1, trained_long=False
    ),
    "cancer-mlp-adam-16": Problem(data.cancer, partial(mlp, 30, 2, 64), _classes, "adam", 16, 5),
    "denoising-cnn-adam-64": Problem(data.denoising, image_to_image, _numbers, "adam", 64, 5),
    "mnist-mlp-sgd-128": Problem(
        data.mnist, partial(mlp, 784, 10), _classes, "sgd", 128, 8, trained_long=False
    ),
    "mnist-cnn-adam-64": Problem(
        data.mnist, partial(cnn, 1, 10, 8), _classes, "adam", 64, 5, trained_long=False
    ),
    "mnist-cnn-sgd-32": Problem(
        data.mnist, partial(cnn, 1, 10, 8), _classes, "sgd", 32, 3, trained_long=False
    ),
    "digits-cnn-sgd-256": Problem(
        data.digits, partial(cnn, 1, 10), _classes, "sgd", 256, 30, trained_long=False
    ),
    "cancer-mlp-sgd-32": Problem(
        data.cancer, partial(mlp, 30, 2, 64), _classes, "sgd", 32, 15, trained_long=False
    ),
    "digits-attention-adamw-32": Problem(
        data.digits, partial(Attention, 8, 10, 8), _classes, "adamw", 32, 6, trained_long=False
    ),
    "text-attention-sgd-32": Problem(data.text, _text, per_token, "sgd", 32, 1, trained_long=False),
    "denoising-cnn_bn-adamw-64": Problem(
        data.denoising,
        partial(image_to_image, norm=True),
        _numbers,
        "adamw",
        64,
        5,
        trained_long=False,
    ),
    "tuned-digits-cnn_bn-adamw-32": _tuned(
        data.digits,
        partial(cnn, 1, 10, norm=True),
        _classes,
        "adamw",
        32,
        5,
        earlier=Earlier(data.mnist, partial(cnn, 1, 10, norm=True), 4, head="11."),
    ),
    "tuned-classes-cnn-adam-64": _tuned(
        data.last_classes,
        partial(cnn, 1, 5, 8),
        _classes,
        "adam",
        64,
        8,
        earlier=Earlier(data.first_classes, partial(cnn, 1, 5, 8), 8, head="10."),
    ),
    "tuned-classes-mlp-sgd-64": _tuned(
        data.last_classes,
        partial(mlp, 784, 5),
        _classes,
        "sgd",
        64,
        8,
        earlier=Earlier(data.first_classes, partial(mlp, 784, 5), 4, head="5."),
    ),
    "tuned-code-attention-adamw-32": _tuned(
        data.code,
        _text,
        per_token,
        "adamw",
        32,
        1,
        earlier=Earlier(data.text, _text, 4, loss_fn=per_token),
    ),
    "patches-cnn-adam-64": _held(data.patches, partial(cnn, 3, 8), _classes, "adam", 64, 10),
    "digits-cnn_bn-adamw-16": _held(
        data.digits, partial(cnn, 1, 10, norm=True), _classes, "adamw", 16, 3
    ),
    "patches-mlp-sgd-256": _held(data.patches, partial(mlp, 768, 8), _classes, "sgd", 256, 20),
    "fair-mlp_bn-sgd-32": _held(
        data.fair, partial(mlp, 8, 2, 64, norm=True), _classes, "sgd", 32, 3
    ),
    "gapminder-mlp-adam-16": _held(data.gapminder, partial(mlp, 8, 1, 64), _numbers, "adam", 16, 5),
    "digits-attention-sgd-64": _held(
        data.digits, partial(Attention, 8, 10, 8), _classes, "sgd", 64, 10
    ),
    "text-attention-adam-64": _held(data.text, _text, per_token, "adam", 64, 1, trained_long=False),
    "denoising-cnn_bn-sgd-32": _held(
        data.denoising, partial(image_to_image, norm=True), _numbers, "sgd", 32, 5
    ),
    "mnist-attention-adam-64": _held(
        data.mnist, partial(Attention, 28, 10, 28), _classes, "adam", 64, 4, trained_long=False
    ),
    "mnist-cnn_bn-adamw-128": _held(
        data.mnist, partial(cnn, 1, 10, 8, norm=True), _classes, "adamw", 128, 6, trained_long=False
    ),
    "mnist-mlp_bn-sgd-32": _held(
        data.mnist, partial(mlp, 784, 10, norm=True), _classes, "sgd", 32, 2, trained_long=False
    ),
    "party-mlp-sgd-32": _held(
        data.party, partial(mlp, 5, 7, 64), _classes, "sgd", 32, 8, trained_long=False
    ),
    "co2-mlp-adamw-32": _held(
        data.co2, partial(mlp, 26, 1, 64), _numbers, "adamw", 32, 5, trained_long=False
    ),
    "turns-cnn-sgd-64": _held(
        data.turns, partial(cnn, 1, 4, 8), _classes, "sgd", 64, 5, trained_long=False
    ),
    "turns-cnn_bn-adam-256": _held(
        data.turns, partial(cnn, 1, 4, 8, norm=True), _classes, "adam", 256, 12, trained_long=False
    ),
    "digits-autoencoder-adam-32": _held(
        data.autoencoding, partial(mlp, 64, 64, 32), _numbers, "adam", 32, 6, trained_long=False
    ),
    # What came before taught little: no network here learns how a patch was turned.
    "tuned-patches-cnn_bn-adamw-64": _held(
        data.patches,
        partial(cnn, 3, 8, norm=True),
        _classes,
        "adamw",
        64,
        6,
        trained_long=False,
        earlier=Earlier(data.rotation, partial(cnn, 3, 4, norm=True), 10, head="13."),
    ),
    "tuned-classes-attention-adamw-32": _held(
        data.last_classes,
        partial(Attention, 28, 5, 28),
        _classes,
        "adamw",
        32,
        4,
        trained_long=False,
        earlier=Earlier(data.first_classes, partial(Attention, 28, 5, 28), 8, head="head.1"),
    ),
    "tuned-noisier-cnn-sgd-64": _held(
        data.noisier,
        image_to_image,
        _numbers,
        "sgd",
        64,
        6,
        trained_long=False,
        earlier=Earlier(data.denoising, image_to_image, 5, head="6.", loss_fn=mse_loss),
    ),
    "tuned-manual-attention-adam-64": _held(
        data.manual,
        _text,
        per_token,
        "adam",
        64,
        1,
        trained_long=False,
        earlier=Earlier(data.code, _text, 4, loss_fn=per_token),
    ),
}
"""Name -> problem; the name says data, model, optimizer and batch size. Those of fine-tuning begin
with ``tuned``."""
