"""The part of a batch that belongs to a rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lrrt_stage.errors import LRRTError, describe
from lrrt_stage.measure.evaluations import examples_in, tensors_in

__all__ = ["ALONE", "Share", "SharedBatches", "count_examples", "is_shared"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Share:
    """The part of rank ``rank`` of ``size``: examples that follow each other."""

    rank: int = 0
    size: int = 1

    def of(self, examples: Part) -> Part:
        """Return the rank's part of a tensor or a list of examples; those beyond a multiple go."""
        count = len(examples) // self.size  # type: ignore[arg-type]
        return examples[self.rank * count : (self.rank + 1) * count]  # type: ignore[index]


ALONE = Share()
"""All of a batch."""


class SharedBatches:
    """The rank's part of each of the ``batches``, of which every rank draws all.

    The examples that are too many to divide the last batch of an epoch are left out. ``agree`` is
    called where an epoch begins, so that the ranks draw the same.
    """

    def __init__(
        self, batches: Iterable[Any], share: Share, agree: Callable[[], None] = lambda: None
    ) -> None:
        self.batches, self.share, self.agree = batches, share, agree

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self.agree()
        for batch in self.batches:
            count = count_examples(batch)
            if count < self.share.size:
                raise LRRTError(
                    f"a batch of {count} examples does not divide among {self.share.size} "
                    "processes: leave the last batch out with drop_last=True"
                )
            yield _part(batch, count, self.share)


def is_shared(batches: Any) -> bool:
    """Return whether batches are of this rank's examples already, as with a sampler of torch's."""
    sampler = batches.sampler if isinstance(batches, DataLoader) else None
    is_part = getattr(batches, "share", ALONE).size > 1
    return is_part or isinstance(sampler, DistributedSampler)


def _part(batch: Any, count: int, share: Share) -> Any:
    """Return the part of a batch of ``count`` examples, in its form."""
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim and len(batch) != count:  # whole on every rank, it might be wrong
            raise _undivided(f"{describe(batch)} beside {count} examples", share)
        return share.of(batch) if batch.ndim else batch
    if isinstance(batch, Mapping):
        result: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        for key, value in batch.items():
            result[key] = _part(value, count, share)
        return result
    if isinstance(batch, (tuple, list)):
        if _holds_examples(batch, count):
            return share.of(batch)
        parts = [_part(part, count, share) for part in batch]
        return parts if isinstance(batch, list) else getattr(batch, "_make", type(batch))(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        result = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(result, field.name, _part(getattr(batch, field.name), count, share))
        return result
    if batch is None or isinstance(batch, (bool, int, float, str)):
        return batch
    raise _undivided(describe(batch), share)


def count_examples(batch: Any) -> int:
    """Return the number of examples: the length of all tensors, where they have one length."""
    lengths = {len(each) for each in tensors_in(batch) if each.ndim}
    return lengths.pop() if len(lengths) == 1 else examples_in(batch)


def _holds_examples(batch: tuple | list, count: int) -> bool:
    """Return whether a sequence has an entry for each example, such as images of several sizes."""
    if len(batch) != count or hasattr(batch, "_make"):
        return False
    first = batch[0]
    return not (isinstance(first, (Tensor, np.ndarray)) and first.ndim and len(first) == count)


def _undivided(what: str, share: Share) -> LRRTError:
    return LRRTError(
        f"a batch holds {what}, which cannot be divided among {share.size} processes: give tensors "
        "with a row for each example, or a DataLoader with a DistributedSampler"
    )
