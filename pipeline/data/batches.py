"""Batches on the device: cut from a tensor, or read by a ``DataLoader`` when it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from lrrt_stage.settings import require
from lrrt_stage.state.preserve import preserved_sources
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.splits import Data, check_batch, check_example, reading, split_size

__all__ = ["Batches"]


class Batches:
    """``(inputs, labels)`` on a device, as a model takes them; every iteration is one epoch.

    Training batches are shuffled and augmented with random numbers from ``generator``, and a
    last batch that is not full is dropped. Validation batches come in order, all of them.
    uint8 inputs are scaled to 0 … 1; unless ``normalize`` is off, the data's mean per channel is
    then taken away and what is left divided by its deviation.

    Raises
    ------
    LRRTError
        For a batch size or an augmentation that the data cannot have. While a split that is not
        in memory is read: for an example that cannot be read, holds NaN, or has a label outside
        the classes; a batch is checked before it goes to the device.
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
        split = data.train if train else data.val
        self.size = split_size(split)
        require(
            not train or batch_size <= self.size,
            f"batch_size={batch_size} is larger than the {self.size} training examples: lower it",
        )
        if augment != "none":  # the shape is that of an example, which may have to be read
            require(
                len(data.input_shape) == 3,
                f"augment={augment!r} takes images (channels, height, width), the data has inputs "
                f"of shape {data.input_shape}: use none",
            )
        self.batch_size, self.device, self.train = batch_size, device, train
        self.num_classes = data.num_classes
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = AUGMENTATIONS[augment] if train else None
        self.statistics = _broadcastable(data, device) if normalize else None
        self.tensors = None
        self.checked = True
        if isinstance(split, tuple):
            # No copy where the data is on the device already.
            self.tensors = split[0].to(device), split[1].to(device)
        else:
            self.checked = False
            self.order = _Order(range(self.size))
            self.loader: DataLoader = DataLoader(
                split,
                batch_size,
                sampler=self.order,
                drop_last=train,
                # How often a loader draws depends on its processes: not from ours. Their own
                # seeds come from it.
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
        order = torch.randperm(self.size, generator=self.generator) if self.train else None
        for batch in self._cut(order) if self.tensors else self._read(order):
            yield self._on_device(*batch)

    def chosen(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the examples at ``indices`` of the split as one batch."""
        if self.tensors is not None:
            places = torch.as_tensor(indices, device=self.device)
            return self._on_device(*(each[places] for each in self.tensors))
        examples = []
        for index in map(int, indices):
            with reading(f"example {index} of the {self.split} split"):
                examples.append(self.loader.dataset[index])
                check_example(examples[-1])
        with reading(f"the examples {list(indices)[:3]} … of the {self.split} split"):
            inputs, labels = default_collate(examples)
        check_batch(self.split, inputs, labels, list(indices), self.num_classes)
        return self._on_device(inputs, labels)

    def check(self) -> None:
        """Read a split that is not in memory once, whole, so that what is wrong with it is raised.

        Nothing is read where that was done before, or the split is in memory. Random states and
        generators stay as they are.
        """
        if not self.checked:
            with preserved_sources(self.loader):
                for _ in self._read(None):
                    pass
            self.checked = True

    @property
    def split(self) -> str:
        """Name of the split."""
        return "train" if self.train else "val"

    def _cut(self, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut batches from the tensors in memory."""
        assert self.tensors is not None
        inputs, labels = self.tensors
        if order is None:
            yield from zip(
                inputs.split(self.batch_size), labels.split(self.batch_size), strict=True
            )
            return
        for chosen in order.to(self.device).split(self.batch_size)[: len(self)]:
            yield inputs[chosen], labels[chosen]

    def _read(self, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Have the loader read batches."""
        if order is not None:
            self.order.indices = order.tolist()
        places = list(self.order.indices)
        read: Iterator[Any] | None = None
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            of_batch = places[start : start + self.batch_size]
            with reading(f"a batch of the {self.split} split ({_named(of_batch)})"):
                read = read or iter(self.loader)
                batch = next(read)
                check_example(batch)
            inputs, labels = batch
            check_batch(self.split, inputs, labels, of_batch, self.num_classes)
            yield inputs, labels

    def _on_device(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        moved = labels.to(self.device, non_blocking=True).long()
        return self._prepared(inputs.to(self.device, non_blocking=True)), moved

    def _prepared(self, inputs: Tensor) -> Tensor:
        if self.augment is not None:
            inputs = self.augment(inputs, self.generator)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        elif inputs.is_floating_point():
            inputs = inputs.float()
        if self.statistics is not None:
            mean, std = self.statistics
            inputs = (inputs - mean) / std
        return inputs


def _named(places: Sequence[int]) -> str:
    few = ", ".join(map(str, places[:3]))
    return f"examples {few}, … {places[-1]}" if len(places) > 3 else f"examples {few}"


class _Order(Sampler):
    """The indices of an epoch, drawn before it."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _broadcastable(data: Data, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if data.mean is None or data.std is None:
        return None
    shape = (-1, *[1] * (len(data.input_shape) - 1))
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (data.mean, data.std))
    return mean.reshape(shape).to(device), std.reshape(shape).to(device)
