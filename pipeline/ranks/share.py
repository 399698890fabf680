"""The part of a batch that belongs to a rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
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
    """The rank's part of each of the ``batches``.

    Every rank draws all of them. Of the last batch of an epoch, the examples that do not divide are
    left out. ``agree`` is called where an epoch begins, so that the ranks draw the same.

    Batches that are the rank's already are left as they are; a sampler of torch's is told the
    number of the epoch, so that it draws another order in each.
    """

    def __init__(
        self, batches: Iterable[Any], share: Share, agree: Callable[[], None] = lambda: None
    ) -> None:
        self.batches, self.share, self.agree = batches, share, agree
        self.epoch = 0
        """How often they were begun."""

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        if is_shared(self.batches):
            sampler = _sampler(self.batches)
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(self.epoch - 1)
            yield from self.batches
            return
        self.agree()
        for batch in self.batches:
            count = count_examples(batch)
            if count >= self.share.size:
                yield _part(batch, count, self.share, has_rows=_lengths(batch) == {count})


def is_shared(batches: Any) -> bool:
    """Return whether batches are of this rank's examples already, as with a sampler of torch's."""
    is_part = getattr(batches, "share", ALONE).size > 1
    return is_part or isinstance(_sampler(batches), DistributedSampler)


def _sampler(batches: Any) -> Any:
    """Return what draws the examples of batches of torch's; None of others."""
    if not isinstance(batches, DataLoader):
        return None
    return getattr(batches.batch_sampler, "sampler", batches.sampler)


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch that ranks divide.

    Raises
    ------
    LRRTError
        If it is not known which of its parts hold an example each.
    """
    count, lengths = examples_in(batch), _lengths(batch)
    if len(lengths) == 1 and lengths != {count}:
        raise _undivided(f"{describe(batch)}, with sequences of {count} and rows of {lengths}")
    return count


def _lengths(batch: Any) -> set[int]:
    return {len(each) for each in tensors_in(batch) if each.ndim}


def _part(batch: Any, count: int, share: Share, *, has_rows: bool, depth: int = 0) -> Any:
    """Return the part of a batch of ``count`` examples, in its form.

    With ``has_rows`` each of its tensors has a row for each example; otherwise there are sequences
    with an entry for each, such as images of several sizes.
    """
    part = partial(_part, count=count, share=share, has_rows=has_rows, depth=depth + 1)
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim and len(batch) != count:  # whole on every rank, it might be wrong
            raise _undivided(f"{describe(batch)} beside {count} examples")
        return share.of(batch) if batch.ndim else batch
    if isinstance(batch, Mapping):
        result: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        for key, value in batch.items():
            result[key] = part(value)
        return result
    if isinstance(batch, (tuple, list)):
        is_sequence = len(batch) == count and not hasattr(batch, "_make")
        if is_sequence and (not _lengths(batch) if has_rows else depth > 0):
            return share.of(batch)
        parts = [part(each) for each in batch]
        return parts if isinstance(batch, list) else getattr(batch, "_make", type(batch))(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        result = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(result, field.name, part(getattr(batch, field.name)))
        return result
    if batch is None or isinstance(batch, (bool, int, float, str)):
        return batch
    raise _undivided(describe(batch))


def _undivided(what: str) -> LRRTError:
    return LRRTError(
        f"a batch holds {what}, which cannot be divided among processes: give tensors with a row "
        "for each example, or a DataLoader with a DistributedSampler"
    )
