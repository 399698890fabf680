"""What a dataset is: a training and a validation split, checked, with a digest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lrrt_stage.errors import LRRTError, describe
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state import weights

__all__ = ["Data", "Split", "channel_statistics", "checked_examples", "split_size"]

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
            split, where = getattr(self, name), f"the {name} split"
            remedy = "give a pair of tensors (inputs, labels) or a torch Dataset with a length"
            require_kind(_is_split(split), where, split, remedy)
            size, targets = split_size(split), _known_targets(split)
            require(size > 0, f"{where} is empty: check the dataset and its options")
            if isinstance(split, tuple):
                checked_examples(where, split, self.num_classes)
            elif targets is not None:
                _check_targets(where, targets, self.num_classes, range(len(targets)))
            require(
                targets is None or len(targets) == size,
                f"{where} has {size} inputs and not as many labels: pair them",
            )

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
        first = default_collate([split[0]])
        inputs, _ = checked_examples("the first train example", first, self.num_classes)
        return tuple(inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Numbers that a model returns for an example: one per class, or one per target."""
        if self.num_classes is not None:
            return self.num_classes
        targets = _known_targets(self.train)
        return 1 if targets is None else int(targets[0].numel())

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of examples for training and for validation."""
        return split_size(self.train), split_size(self.val)

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation split, or the first target, ``[n]``; zeros if not known."""
        labels = _known_targets(self.val)
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
        for name, split in {"train": self.train, "val": self.val}.items():
            if (targets := _known_targets(split)) is not None:
                tensors[f"{name}.labels"] = targets
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


def checked_examples(
    where: str, examples: Any, num_classes: int | None, places: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of ``examples``: a split in memory, or a batch of one on disk.

    ``places`` are the positions of a batch's examples in the split.
    """
    paired = isinstance(examples, (tuple, list)) and _is_split(tuple(examples))
    require_kind(paired, where, examples, "return (input tensor, target) for every example")
    inputs, targets = examples
    places = places or range(len(inputs))
    _check_targets(where, targets, num_classes, places)
    if inputs.is_floating_point():
        finite = torch.isfinite(inputs).reshape(len(inputs), -1).all(dim=1)
        require(
            bool(finite.all()),
            f"example {places[int(finite.int().argmin())]} of {where} contains NaN or infinite "
            "values: clean the data",
        )
    return inputs, targets


def _check_targets(
    where: str, targets: Tensor, num_classes: int | None, places: Sequence[int]
) -> None:
    if num_classes is None:
        require(
            targets.is_floating_point() and targets.dim() == 2 and bool(targets.isfinite().all()),
            f"the targets of {where} are {describe(targets)}: give finite numbers [n, outputs], or "
            "num_classes for labels",
        )
        return
    require(
        not targets.is_floating_point() and targets.dim() == 1,
        f"the labels of {where} are {describe(targets)}: give integer class indices [n]",
    )
    wrong = (targets < 0) | (targets >= num_classes)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise LRRTError(
            f"example {places[index]} of {where} has label {int(targets[index])}, outside 0 to "
            f"{num_classes - 1}: correct the labels or num_classes"
        )


def _known_targets(split: Any) -> Tensor | None:
    """Return all targets of a split, None for one on disk that has no ``targets``."""
    targets = split[1] if isinstance(split, tuple) else getattr(split, "targets", None)
    return None if targets is None else torch.as_tensor(targets)


def _is_split(split: Any) -> bool:
    if isinstance(split, tuple):
        return len(split) == 2 and all(isinstance(part, Tensor) for part in split)
    return isinstance(split, Dataset) and hasattr(split, "__len__")
