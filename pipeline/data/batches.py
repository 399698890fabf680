"""Batches on the device: slices of tensors, or read by a ``DataLoader`` if they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require
from lrrt_stage.state.preserve import preserved_sources
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.splits import Data, read_batch, split_size

__all__ = ["Batches"]


class Batches:
    """``(inputs, labels)`` on a device, as a model takes them; every iteration is one epoch.

    Training batches are shuffled and augmented with random numbers from ``generator``, and a
    last batch that is not full is dropped. Validation batches come in order, all of them.
    uint8 inputs are scaled to 0 … 1; unless ``normalize`` is off, the data's mean per channel is
    then subtracted, and the result divided by the standard deviation. Batches of a split on disk
    are checked before they go to the device.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        device: torch.device,
        *,
        train: bool,
        seed: int = 0,
        augment: str = "none",
        normalize: bool = True,
        loader_workers: int = 0,
    ) -> None:
        self.split, split = ("train", data.train) if train else ("val", data.val)
        self.size = split_size(split)
        require(
            not train or batch_size <= self.size,
            f"batch_size={batch_size} is larger than the {self.size} training examples: lower it",
        )
        # For a split on disk, the shape of the inputs is only known by reading an example.
        if augment != "none" and len(data.input_shape) != 3:
            raise LRRTError(
                f"augment={augment!r} needs images (channels, height, width), the data has inputs "
                f"of shape {data.input_shape}: use none"
            )
        self.batch_size, self.device, self.train = batch_size, device, train
        self.num_classes = data.num_classes
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = AUGMENTATIONS[augment] if train else None
        self.statistics = _broadcastable(data, device) if normalize else None
        self.in_memory = self.checked = isinstance(split, tuple)
        if isinstance(split, tuple):
            self.tensors = split[0].to(device), split[1].to(device)
        else:
            self.places = _Places()
            self.loader: DataLoader = DataLoader(
                split,
                batch_sampler=self.places,
                # Separate from the generator above: how often a loader draws from it depends on
                # the number of its workers, whose seeds come from it too.
                generator=torch.Generator().manual_seed(seed),
                num_workers=loader_workers,
                pin_memory=device.type == "cuda",
                persistent_workers=loader_workers > 0,
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole if self.train else whole + (rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.train:
            order = torch.randperm(self.size, generator=self.generator)
            order = order[: len(self) * self.batch_size]
        else:
            order = torch.arange(self.size)
        for inputs, labels in self._batches(order, self.batch_size):
            yield self._on_device(inputs, labels)

    def chosen(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the examples at ``indices`` of the split as one batch."""
        (batch,) = self._batches(torch.as_tensor(indices), len(indices))
        return self._on_device(*batch)

    def check(self) -> None:
        """Read a split on disk once and completely, so that errors in it are raised now.

        Nothing is read for a split in memory, or a second time. Random states and generators stay
        as they are.
        """
        if not self.checked:
            with preserved_sources(self.loader):
                for _ in self._batches(torch.arange(self.size), self.batch_size):
                    pass
            self.checked = True

    def _batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the examples at the positions ``order`` in batches of ``size``, not prepared."""
        if self.in_memory:
            inputs, labels = self.tensors
            for chosen in order.to(self.device).split(size):
                yield inputs[chosen], labels[chosen]
            return
        batches = [places.tolist() for places in order.split(size)]

        def loaded() -> Iterator[Any]:
            self.places.batches = batches
            yield from self.loader

        read = loaded()
        for places in batches:
            yield read_batch(self.split, read, places, self.num_classes)

    def _on_device(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        labels = labels.to(self.device, non_blocking=True).long()
        inputs = inputs.to(self.device, non_blocking=True)
        if self.augment is not None:
            inputs = self.augment(inputs, self.generator)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        elif inputs.is_floating_point():
            inputs = inputs.float()
        if self.statistics is not None:
            mean, std = self.statistics
            inputs = (inputs - mean) / std
        return inputs, labels


class _Places:
    """Positions of the examples of every batch, which a loader reads when it starts a pass."""

    batches: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _broadcastable(data: Data, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if data.mean is None or data.std is None:
        return None
    shape = (-1, *[1] * (len(data.input_shape) - 1))
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (data.mean, data.std))
    return mean.reshape(shape).to(device), std.reshape(shape).to(device)
