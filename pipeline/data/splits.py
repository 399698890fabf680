"""What a dataset is: two splits, checked, with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrrt_stage.errors import LRRTError, loader_error
from lrrt_stage.settings import require
from lrrt_stage.state import weights

__all__ = ["Data", "Split", "channel_statistics", "describe"]

Split = tuple[Tensor, Tensor] | Dataset
"""Inputs ``[n, …]`` and integer labels ``[n]`` in memory, or a map-style dataset of
``(input tensor, int label)`` that is read batch by batch."""
SPLIT = "a pair of tensors (inputs, labels) or a torch Dataset with a length"


@dataclass(frozen=True)
class Data:
    """A classification dataset, which a dataset factory may return.

    Images are ``[n, channels, height, width]``, uint8 or float. uint8 is scaled to 0 … 1 when a
    batch is made; then ``mean`` and ``std`` (per channel) are applied, where given.

    Raises
    ------
    LRRTError
        For a split that is empty, holds NaN, or has labels outside 0 … num_classes - 1. Of a
        split that is not in memory, what it does not tell as ``targets`` is checked when a batch
        is read.
    """

    train: Split
    val: Split
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            _check_split(name, getattr(self, name), self.num_classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self._first_input().shape)

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of examples for training and for validation."""
        return split_size(self.train), split_size(self.val)

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation split, shape ``[n]``; zeros where they are not known."""
        known = self.val[1] if isinstance(self.val, tuple) else getattr(self.val, "targets", None)
        if known is None:
            return np.zeros(split_size(self.val), dtype=np.int64)
        return torch.as_tensor(known).cpu().numpy()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all values in memory; of a split on disk, over what it says of itself.

        That is its own ``digest()`` if it has one, else its length and labels.
        """
        tensors = {}
        described = hashlib.sha256()
        for name in ("train", "val"):
            split = getattr(self, name)
            if isinstance(split, tuple):
                tensors[f"{name}.inputs"], tensors[f"{name}.labels"] = split
            else:
                own = getattr(split, "digest", None)
                described.update(f"{name} {split_size(split)} {own() if own else ''}".encode())
                if hasattr(split, "targets"):
                    tensors[f"{name}.labels"] = torch.as_tensor(split.targets)
        return hashlib.sha256(
            (weights.digest(tensors) + described.hexdigest()).encode()
        ).hexdigest()

    def to(self, device: torch.device) -> Data:
        """Return the data with what is in memory on ``device``."""
        moved = {
            name: tuple(tensor.to(device) for tensor in split)
            for name in ("train", "val")
            if isinstance(split := getattr(self, name), tuple)
        }
        copy = object.__new__(Data)
        # Checked already, and with the digest, so that it is not read back from the device.
        copy.__dict__.update(self.__dict__ | {"digest": self.digest} | moved)
        return copy

    def _first_input(self) -> Tensor:
        if isinstance(self.train, tuple):
            return self.train[0][0]
        with reading("example 0 of the train split"):
            example = self.train[0]
            check_example(example)
            return example[0]

    @classmethod
    def of(cls, made: Any, source: str) -> Data:
        """Return ``made`` as Data: Data itself, or a pair of splits whose classes are counted.

        Raises
        ------
        LRRTError
            If it is neither; the message says what came and what was expected.
        """
        if isinstance(made, cls):
            return made
        if isinstance(made, (tuple, list)) and len(made) == 2:
            train, val = (tuple(split) if isinstance(split, list) else split for split in made)
            if _is_split(train) and _is_split(val):
                return cls(train, val, _count_classes(train, source))
        raise LRRTError(
            f"{source} returned {describe(made)}, expected pipeline.data.Data or a pair "
            f"(train, val), each {SPLIT}: {_remedy(made)}"
        )


def split_size(split: Split) -> int:
    """Return the number of examples."""
    return len(split[0]) if isinstance(split, tuple) else len(cast(Sized, split))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of uint8 images on the scale 0 … 1."""
    values = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    mean = values.mean(dim=(0, 2, 3))
    std = values.std(dim=(0, 2, 3)).clamp_min(1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a user's dataset raises inside the block into one LRRTError of one line."""
    try:
        yield
    except Exception as error:
        name, line = loader_error(error)
        if isinstance(error, LRRTError):
            raise LRRTError(line) from error
        raise LRRTError(
            f"{what} cannot be read ({name}: {line}): mend or remove it, and give all "
            "inputs of a split one shape"
        ) from error


def check_example(example: Any) -> None:
    """Raise TypeError unless ``example`` is a pair that starts with a tensor."""
    if not (
        isinstance(example, (tuple, list)) and len(example) == 2 and isinstance(example[0], Tensor)
    ):
        raise TypeError(f"{describe(example)} in place of (input tensor, int label)")


def check_batch(
    split: str, inputs: Tensor, labels: Any, places: Sequence[int], num_classes: int
) -> None:
    """Check a batch of a split that is not in memory, while it is on the CPU.

    ``places`` are the positions in the split of its ``b`` examples.

    Raises
    ------
    LRRTError
        If labels are no class indices ``[b]`` or lie outside the classes, or an input is NaN or
        infinite; the message names the example.
    """
    require(
        isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1,
        f"the {split} labels of a batch are {describe(labels)}: integer class indices [b] are "
        "needed",
    )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        entry = int(outside.nonzero()[0])
        raise LRRTError(
            f"example {places[entry]} of the {split} split has label {int(labels[entry])}, "
            f"outside 0 to {num_classes - 1}: correct the labels or num_classes"
        )
    # A sum is read in a fraction of the time; where it overflows, every value is looked at.
    if inputs.is_floating_point() and not torch.isfinite(inputs.sum()):
        bad = ~torch.isfinite(inputs).flatten(1).all(dim=1)
        if bad.any():
            raise LRRTError(
                f"example {places[int(bad.nonzero()[0])]} of the {split} split holds NaN or "
                "infinite values: clean the data"
            )


def _check_split(name: str, split: Split, num_classes: int) -> None:
    require(
        _is_split(split),
        f"the {name} split is {describe(split)}, expected {SPLIT}: {_remedy(split)}",
    )
    require(split_size(split) > 0, f"the {name} split is empty: check the dataset and its options")
    labels = split[1] if isinstance(split, tuple) else getattr(split, "targets", None)
    if isinstance(split, tuple):
        inputs = split[0]
        require(
            len(inputs) == len(split[1]),
            f"the {name} split has {len(inputs)} inputs and {len(split[1])} labels: pair them",
        )
        if inputs.is_floating_point():
            bad = int((~torch.isfinite(inputs)).sum())
            require(
                bad == 0, f"the {name} inputs hold {bad} NaN or infinite values: clean the data"
            )
    if labels is not None:
        labels = torch.as_tensor(labels)
        require(
            not labels.is_floating_point() and labels.dim() == 1,
            f"the {name} labels are {describe(labels)}: integer class indices [n] are needed",
        )
        low, high = int(labels.min()), int(labels.max())
        require(
            low >= 0 and high < num_classes,
            f"the {name} labels go from {low} to {high}, outside 0 to {num_classes - 1}: "
            "correct the labels or num_classes",
        )


def _is_split(made: Any) -> bool:
    if isinstance(made, tuple):
        return len(made) == 2 and all(isinstance(each, Tensor) for each in made)
    return isinstance(made, Dataset) and hasattr(made, "__len__")


def _count_classes(split: Split, source: str) -> int:
    if isinstance(split, tuple):
        return int(split[1].max()) + 1 if split[1].numel() else 1
    classes = getattr(split, "classes", None)
    if classes is None:
        raise LRRTError(
            f"{source} returned a Dataset without an attribute classes: "
            "return pipeline.data.Data with num_classes"
        )
    return len(classes)


def describe(made: Any) -> str:
    """Return what ``made`` is, in a few words: type, dtype and shape, or what it consists of."""
    if isinstance(made, Tensor):
        return f"a {str(made.dtype).removeprefix('torch.')} tensor of shape {list(made.shape)}"
    if isinstance(made, np.ndarray):
        return f"a {made.dtype} array of shape {list(made.shape)}"
    if isinstance(made, (tuple, list)):
        shown = ", ".join(describe(each) for each in made[:4])
        more = f", and {len(made) - 4} more" if len(made) > 4 else ""
        return f"{type(made).__name__} of ({shown}{more})"
    if isinstance(made, type):
        return f"the class {made.__name__}"
    return "None" if made is None else type(made).__name__


def _remedy(made: Any) -> str:
    """Return what to do about something that is no data, or no split."""
    parts = made if isinstance(made, (tuple, list)) else [made]
    flat = [one for part in parts for one in (part if isinstance(part, (tuple, list)) else [part])]
    if made is None:
        return "is its return missing?"
    if any(isinstance(each, DataLoader) for each in flat):
        return "return the Dataset of a DataLoader, batches are made here"
    if any(isinstance(each, np.ndarray) for each in flat):
        return "make tensors of arrays, with torch.from_numpy"
    if any(isinstance(each, type) for each in flat):
        return "return an object of a class, not the class"
    if all(isinstance(each, Tensor) for each in parts) and len(parts) == 2:
        return "these are inputs and labels of one split, hold some examples back for validation"
    if all(isinstance(each, Tensor) for each in parts) and len(parts) == 4:
        return "pair them, ((train inputs, train labels), (val inputs, val labels))"
    return "return one of these"
