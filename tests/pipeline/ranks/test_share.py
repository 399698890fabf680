"""The part of a batch that belongs to a rank."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from lrrt_stage import LRRTError
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.batches import Batches
from pipeline.data.splits import Data
from pipeline.ranks.options import RankOptions
from pipeline.ranks.share import Share, SharedBatches, is_shared

CPU = torch.device("cpu")
SIZES = [1, 2, 3, 4]


def parts(batch, size):
    """The parts of a batch that the ranks get."""
    return [next(iter(SharedBatches([batch], Share(rank, size)))) for rank in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_the_parts_of_a_batch_are_the_batch(size):
    x, y = torch.randn(12, 3), torch.arange(12)
    found = parts((x, y), size)
    assert torch.equal(torch.cat([part[0] for part in found]), x)
    assert torch.equal(torch.cat([part[1] for part in found]), y)
    assert {len(part[0]) for part in found} == {12 // size}


Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Example:
    x: torch.Tensor
    scale: float


def test_batches_of_any_form_are_divided_and_keep_it():
    x, y = torch.arange(4.0), np.arange(4)
    names = ["a", "b", "c", "d"]
    batch = {"x": x, "pair": Pair(x, y), "names": names, "one": torch.tensor(7), "k": None}
    first, second = parts(batch, 2)
    assert first["pair"].x.tolist() + second["pair"].x.tolist() == x.tolist()
    assert isinstance(first["pair"], Pair)
    assert second["pair"].y.tolist() == [2, 3]
    assert (first["names"], second["names"]) == (["a", "b"], ["c", "d"])
    assert first["one"] == second["one"] == 7
    assert len(names) == len(batch["x"]) == 4
    assert parts(Example(x, 0.5), 2)[1].x.tolist() == [2, 3]
    # Two examples of two tensors are not two examples of a list.
    assert [len(part) for part in parts([torch.ones(2), torch.zeros(2)], 2)] == [2, 2]


def test_examples_that_are_too_many_or_too_few_are_left_out():
    assert [len(part[0]) for part in parts((torch.ones(7, 1), torch.ones(7)), 3)] == [2, 2, 2]
    batches = [torch.ones(6, 1), torch.ones(2, 1)]
    assert [len(each) for each in SharedBatches(batches, Share(0, 3))] == [2]


def test_a_pair_is_not_taken_for_two_examples():
    """Whose number is that of the parts of a batch."""
    for pair in (({"x": torch.eye(2)}, torch.arange(2)), [torch.eye(2), torch.arange(2)]):
        first, second = parts(pair, 2)
        assert len(first) == len(second) == 2
        assert [first[1].tolist(), second[1].tolist()] == [[0], [1]]
    images = [torch.ones(3, 4, 4), torch.ones(3, 5, 5)]
    first, second = parts((images, [{"box": torch.ones(1, 4)}, {"box": torch.ones(2, 4)}]), 2)
    assert [len(first[0]), len(second[1])] == [1, 1]
    assert second[1][0]["box"].shape == (2, 4)


def test_a_list_with_an_entry_for_each_example_is_divided():
    sized = [torch.ones(3, size, size) for size in (4, 5, 6, 7)]
    first, second = parts((sized, [{"box": torch.ones(2, 4)} for _ in sized]), 2)
    assert [len(part) for part in (*first, *second)] == [2, 2, 2, 2]
    assert second[0][0].shape == (3, 6, 6)


@pytest.mark.parametrize(
    "batch",
    [
        [torch.ones(4), SimpleNamespace(x=torch.ones(4))],
        # Whole on both ranks, each of them would train on all examples.
        {"x": torch.ones(4, 2), "edges": torch.ones(2, 9)},
        # Images of three colours: their number, or that of the colours?
        ([torch.ones(3, 5, 5)] * 8, [0] * 8),
        {"fields": (torch.ones(4, 2), torch.ones(4))},
    ],
)
def test_what_cannot_be_divided_is_named(batch):
    with pytest.raises(LRRTError, match="a batch holds .* which cannot be divided among"):
        parts(batch, 2)


def test_every_epoch_begins_with_an_agreement():
    agreed = []
    batches = SharedBatches([torch.ones(2)], Share(0, 2), lambda: agreed.append(1))
    assert len(batches) == 1
    list(batches), list(batches)
    assert len(agreed) == 2


def test_a_loader_with_a_sampler_for_ranks_is_shared_already():
    data = TensorDataset(torch.ones(8, 1))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    assert is_shared(DataLoader(data, 2, sampler=sampler))
    assert is_shared(SharedBatches([], Share(0, 2)))
    assert not is_shared(DataLoader(data, 2))


class OnDisk(torch.utils.data.Dataset):
    """A split that is read, and counts what is read."""

    def __init__(self, inputs, labels):
        self.inputs, self.targets, self.read = inputs, labels.tolist(), 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.read += 1
        return self.inputs[index], self.targets[index]


def images(n=40):
    inputs = torch.arange(n * 3 * 8 * 8, dtype=torch.float32).reshape(n, 3, 8, 8)
    return inputs, torch.arange(n) % 4


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("size", [2, 3])
def test_the_ranks_draw_together_what_one_process_draws(size, augment, on_disk):
    """Two epochs of the same examples in the same order, with the same crops and flips."""

    def batches(share):
        made = (OnDisk(*images()) if on_disk else images(), images(8))
        return Batches(Data(*made, 4), 12, CPU, train=True, seed=3, augment=augment, share=share)

    def drawn(share):
        of_rank = batches(share)
        return [batch for _ in range(2) for batch in of_rank]

    alone = drawn(Share())
    of_ranks = [drawn(Share(rank, size)) for rank in range(size)]
    assert len(alone) == len(of_ranks[0]) == 6
    for index, (inputs, labels) in enumerate(alone):
        assert torch.equal(torch.cat([rank[index][0] for rank in of_ranks]), inputs)
        assert torch.equal(torch.cat([rank[index][1] for rank in of_ranks]), labels)


def test_a_rank_reads_its_own_examples_only():
    split = OnDisk(*images())
    before = split.read
    data = Data(split, images(8), 4)
    checked = split.read - before
    list(Batches(data, 12, CPU, train=True, share=Share(0, 2)))
    assert split.read - before - checked == 18


@pytest.mark.parametrize(("batch", "choice"), [(65, "64 or 66"), (1, "use 2"), (3, "2 or 4")])
def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(batch, choice):
    with pytest.raises(LRRTError, match=f"batch_size={batch} does not divide .*{choice}"):
        RankOptions(processes=2).require_divided(batch)


def test_a_sampler_draws_another_order_in_each_epoch():
    data = TensorDataset(torch.arange(40))
    sampler = DistributedSampler(data, num_replicas=2, rank=1)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    assert expected[0] != expected[1] != expected[2]
    batches = SharedBatches(DataLoader(data, 5, sampler=sampler), Share(1, 2))
    found = [[int(each) for (batch,) in batches for each in batch] for _ in expected]
    assert found == expected


def test_a_sampler_inside_of_one_for_batches_is_seen():
    data = TensorDataset(torch.arange(40))
    inner = DistributedSampler(data, num_replicas=2, rank=1)
    assert is_shared(DataLoader(data, batch_sampler=BatchSampler(inner, 5, drop_last=True)))
    assert not is_shared(DataLoader(data, batch_size=None))
