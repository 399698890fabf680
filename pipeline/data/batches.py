"""Batches on the device: slices of tensors, or read by a ``DataLoader`` if they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from lrrt_stage.errors import LRRTError, loader_error
from lrrt_stage.settings import require
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.splits import Data, checked_examples, split_size
from pipeline.ranks.share import ALONE, Share

__all__ = ["Batches", "Preprocessing"]


class Preprocessing(nn.Module):
    """Brings inputs of a dataset into the form that a model takes, also inside a logged model.

    uint8 is scaled to 0 … 1; with ``normalize``, the data's mean per channel is then subtracted,
    and the result divided by the standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: Data, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize and data.mean is not None and data.std is not None
        if self.normalize:
            shape = (-1, *[1] * (len(data.input_shape) - 1))
            for name in ("mean", "std"):
                values = torch.tensor(getattr(data, name), dtype=torch.float32)
                self.register_buffer(name, values.reshape(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs as a model takes them, the same shape."""
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        elif inputs.is_floating_point():
            inputs = inputs.float()
        return (inputs - self.mean) / self.std if self.normalize else inputs


class Batches:
    """``(inputs, targets)`` on a device, as a model takes them; every iteration is one epoch.

    Training batches are shuffled and augmented with random numbers from ``generator``, and a
    last batch that is not full is dropped. Validation batches come in order, all of them. Inputs
    go through :class:`Preprocessing`. Batches of a split on disk are checked before they go to the
    device.

    Of training batches of ``batch_size``, each is the part that is ``share``; what is not read for
    another rank's part costs nothing.
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
        share: Share = ALONE,
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
        self.data, self.share = data, share if train else ALONE
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = AUGMENTATIONS[augment] if train else None
        self.preprocessing = Preprocessing(data, normalize).to(device)
        if isinstance(split, tuple):
            self.tensors: tuple[Tensor, Tensor] | None = (split[0].to(device), split[1].to(device))
        else:
            self.tensors = None
            # The order of the examples, which is drawn before every epoch, and not by a sampler:
            # how far that has got depends on the number of workers.
            self.order: list[int] = []
            self.loader: DataLoader = DataLoader(
                split,
                batch_size // self.share.size,
                sampler=self.order,
                # For the seeds of the workers, who read other examples on every rank.
                generator=torch.Generator().manual_seed(seed + share.rank),
                num_workers=loader_workers,
                pin_memory=device.type == "cuda",
                persistent_workers=loader_workers > 0,
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole if self.train else whole + (rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, size = torch.arange(self.size), self.batch_size
        if self.train:
            order = torch.randperm(self.size, generator=self.generator)
            order = order[: len(self) * self.batch_size]
            if self.share.size > 1:
                order = self.share.of(order.view(len(self), -1).T).T.flatten()
                size = self.batch_size // self.share.size
        if self.tensors is not None:
            order = order.to(self.device)
            # One after the other: to cut a long order at once takes as long as many steps.
            for start in range(0, len(order), size):
                places = order[start : start + size]
                yield self._prepared(tensor[places] for tensor in self.tensors)
            return
        self.order[:] = order.tolist()
        batches = iter(self.loader)
        for places in order.split(size):
            yield self._prepared(self._read(batches, places.tolist()))

    def representative(self, size: int) -> tuple[Tensor, Tensor]:
        """Return a batch of ``size`` validation examples, at most all, alike at every call.

        They are evenly spaced over the examples sorted by label or target, so that every class has
        its share.
        """
        order = np.argsort(self.data.val_labels, kind="stable")
        size = min(size, self.size)
        places = np.sort(order[((np.arange(size) + 0.5) * self.size / size).astype(int)])
        if self.tensors is not None:
            return self._prepared(tensor[places] for tensor in self.tensors)
        examples = places.tolist()
        read = (default_collate([self.data.val[index] for index in each]) for each in [examples])
        return self._prepared(self._read(read, examples))

    def _read(self, batches: Iterator[Any], places: list[int]) -> tuple[Tensor, Tensor]:
        """Return the next batch of a split on disk, of the examples at ``places``, checked."""
        few = ", ".join(map(str, places[:3])) + (", …" if len(places) > 3 else "")
        where = f"a batch of the {self.split} split (examples {few})"
        try:
            batch = next(batches)
        except Exception as error:  # whatever the user's dataset raises
            name, line = loader_error(error)
            if isinstance(error, LRRTError):
                raise LRRTError(line) from error
            raise LRRTError(
                f"{where} cannot be read ({name}: {line}): correct or remove it, and give all "
                "inputs of a split one shape"
            ) from error
        return checked_examples(where, batch, self.data.num_classes, places)

    def _prepared(self, batch: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        targets = targets.to(self.device, non_blocking=True)
        inputs = inputs.to(self.device, non_blocking=True)
        if self.augment is not None:
            inputs = self.augment(inputs, self.generator, self.share)
        targets = targets.float() if self.data.num_classes is None else targets.long()
        return self.preprocessing(inputs), targets
