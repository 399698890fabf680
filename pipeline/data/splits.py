"""What a dataset is: a training and a validation split, checked, with a digest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lrrt_stage.errors import LRRTError, describe, loader_error
from lrrt_stage.settings import require
from lrrt_stage.state import weights

__all__ = ["Data", "Split", "channel_statistics", "read_batch", "split_size"]

Split = tuple[Tensor, Tensor] | Dataset
"""Inputs ``[n, …]`` and targets in memory, or a map-style dataset of ``(input tensor, target)``
that is read batch by batch. Targets are integer labels ``[n]``, or numbers ``[n, outputs]``."""


@dataclass(frozen=True)
class Data:
    """A dataset for classification or regression, which a dataset factory may return.

    Images are ``[n, channels, height, width]``, uint8 or float. uint8 is scaled to 0 … 1 when a
    batch is made; then ``mean`` and ``std`` (per channel) are applied, where given. Without
    ``num_classes`` the targets are numbers.

    Raises
    ------
    LRRTError
        For a split that is empty, contains NaN, or has targets of another form. A
        split on disk is checked whenever a batch is read; only its ``targets``, if it has that
        attribute, are checked here.
    """

    train: Split
    val: Split
    num_classes: int | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            split = getattr(self, name)
            require(
                _is_split(split),
                f"the {name} split is {describe(split)}: give a pair of tensors (inputs, labels) "
                "or a torch Dataset with a length",
            )
            size, labels = split_size(split), _known_labels(split)
            require(size > 0, f"the {name} split is empty: check the dataset and its options")
            if labels is not None:
                _check_labels(name, labels, range(labels.numel()), self.num_classes)
                require(
                    len(labels) == size,
                    f"the {name} split has {size} inputs and {len(labels)} labels: pair them",
                )
            if isinstance(split, tuple):
                _check_inputs(name, split[0], range(size))

    @classmethod
    def from_factory(cls, made: Any, source: str) -> Data:
        """Return what a dataset factory ``made`` as Data.

        That is Data already, or a pair of splits. The classes of a pair are counted: the largest
        training label plus one, or the length of the training set's ``classes``. Targets in memory
        that are floating-point numbers have none.
        """
        if isinstance(made, cls):
            return made
        if isinstance(made, (tuple, list)) and len(made) == 2:
            train, val = (tuple(split) if isinstance(split, list) else split for split in made)
            if _is_split(train) and _is_split(val):
                if isinstance(train, tuple) and train[1].is_floating_point():
                    return cls(train, val, None)
                if isinstance(train, tuple):
                    return cls(train, val, int(train[1].max()) + 1 if train[1].numel() else 1)
                if hasattr(train, "classes"):
                    return cls(train, val, len(train.classes))
        raise LRRTError(
            f"{source} returned {describe(made)}: return pipeline.data.Data, or a pair (train, "
            "val), each a pair of tensors (inputs, labels) or a torch Dataset with a length and "
            "an attribute classes"
        )

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        split = self.train
        if isinstance(split, tuple):
            return tuple(split[0].shape[1:])
        read = (default_collate([split[index]]) for index in [0])
        first, _ = read_batch("train", read, [0], self.num_classes)
        return tuple(first.shape[1:])

    @property
    def outputs(self) -> int:
        """Numbers that a model returns for an example: one per class, or one per target."""
        if self.num_classes is not None:
            return self.num_classes
        targets = _known_labels(self.train)
        return 1 if targets is None else int(targets[0].numel())

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of examples for training and for validation."""
        return split_size(self.train), split_size(self.val)

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation split, or the first target, ``[n]``; zeros if not known."""
        labels = _known_labels(self.val)
        if labels is None:
            return np.zeros(self.sizes[1], dtype=np.int64)
        return labels.reshape(len(labels), -1)[:, 0].cpu().numpy()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all values in memory; for a split on disk, over what it says of itself.

        That is its own ``digest()`` if it has one, its length, and its ``targets``.
        """
        tensors = {}
        described = hashlib.sha256()
        for name in ("train", "val"):
            split, labels = getattr(self, name), _known_labels(getattr(self, name))
            if labels is not None:
                tensors[f"{name}.labels"] = labels
            if isinstance(split, tuple):
                tensors[f"{name}.inputs"] = split[0]
            else:
                own = split.digest() if hasattr(split, "digest") else ""
                described.update(f"{name} {split_size(split)} {own}".encode())
        content = weights.digest(tensors) + described.hexdigest()
        return hashlib.sha256(content.encode()).hexdigest()

    def to(self, device: torch.device) -> Data:
        """Return the data with the splits that are in memory on ``device``."""
        # The copy is not checked again, and keeps the digest, so nothing is read back.
        _ = self.digest
        moved = copy.copy(self)
        for name in ("train", "val"):
            if isinstance(split := getattr(self, name), tuple):
                moved.__dict__[name] = tuple(tensor.to(device) for tensor in split)
        return moved


def split_size(split: Any) -> int:
    """Return the number of examples."""
    return len(split[0]) if isinstance(split, tuple) else len(split)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of uint8 images on the scale 0 … 1."""
    values = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    mean = values.mean(dim=(0, 2, 3))
    std = values.std(dim=(0, 2, 3)).clamp_min(1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())


def read_batch(
    split: str, read: Iterator[Any], places: Sequence[int], num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Return the next batch of ``read``, inputs ``[b, …]`` and targets, checked.

    ``split`` is the name of a split on disk, ``places`` the positions of the examples in it.
    """
    few = ", ".join(map(str, places[:3])) + (f", … {places[-1]}" if len(places) > 3 else "")
    where = f"a batch of the {split} split (examples {few})"
    try:
        batch = next(read)
    except Exception as error:  # whatever the user's dataset raises
        name, line = loader_error(error)
        if isinstance(error, LRRTError):
            raise LRRTError(line) from error
        raise LRRTError(
            f"{where} cannot be read ({name}: {line}): correct or remove it, and give all inputs "
            "of a split one shape"
        ) from error
    require(
        isinstance(batch, (tuple, list)) and _is_split(tuple(batch)),
        f"{where} is {describe(batch)}: return (input tensor, target) for every example",
    )
    inputs, labels = batch
    _check_labels(split, labels, places, num_classes)
    _check_inputs(split, inputs, places)
    return inputs, labels


def _check_labels(
    split: str, labels: Tensor, places: Sequence[int], num_classes: int | None
) -> None:
    if num_classes is None:
        require(
            labels.is_floating_point() and labels.dim() == 2 and bool(labels.isfinite().all()),
            f"the {split} targets are {describe(labels)}: give finite numbers [n, outputs], or "
            "num_classes for labels",
        )
        return
    require(
        not labels.is_floating_point() and labels.dim() == 1,
        f"the {split} labels are {describe(labels)}: give integer class indices [n]",
    )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise LRRTError(
            f"example {places[index]} of the {split} split has label {int(labels[index])}, outside "
            f"0 to {num_classes - 1}: correct the labels or num_classes"
        )


def _check_inputs(split: str, inputs: Tensor, places: Sequence[int]) -> None:
    # The sum takes a fraction of the time. It may overflow, so then all values are examined.
    if inputs.is_floating_point() and not torch.isfinite(inputs.sum()):
        wrong = ~torch.isfinite(inputs).reshape(len(inputs), -1).all(dim=1)
        if wrong.any():
            raise LRRTError(
                f"example {places[int(wrong.nonzero()[0])]} of the {split} split contains NaN or "
                "infinite values: clean the data"
            )


def _known_labels(split: Any) -> Tensor | None:
    """Return all labels of a split, None for one on disk that has no ``targets``."""
    labels = split[1] if isinstance(split, tuple) else getattr(split, "targets", None)
    return None if labels is None else torch.as_tensor(labels)


def _is_split(split: Any) -> bool:
    if isinstance(split, tuple):
        return len(split) == 2 and all(isinstance(part, Tensor) for part in split)
    return isinstance(split, Dataset) and hasattr(split, "__len__")
