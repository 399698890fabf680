from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lrrt_stage import LRRTError
from pipeline.data.batches import Batches
from pipeline.data.splits import Data

CPU = torch.device("cpu")


class Lazy(Dataset):
    """The same examples as a pair of tensors has, one by one."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.inputs[index], int(self.targets[index])


def numbered(n: int = 23, lazy: bool = False, **statistics) -> Data:
    """Inputs that are their own index, labels that are the index modulo 5."""
    inputs = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).expand(n, 2, 6, 6)
    split = inputs.contiguous(), torch.arange(n) % 5
    return Data(*(Lazy(*split) if lazy else split for _ in range(2)), 5, **statistics)


def indices(batches: Batches) -> list[int]:
    return [int(index) for inputs, _ in batches for index in inputs[:, 0, 0, 0]]


def epochs(batches: Batches, n: int) -> list[list[torch.Tensor]]:
    return [[tensor.clone() for pair in batches for tensor in pair] for _ in range(n)]


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("lazy", [False, True])
class TestTraining:
    def test_an_epoch_takes_no_example_twice_and_only_full_batches(self, lazy):
        batches = Batches(numbered(23, lazy), 4, CPU, train=True)

        assert len(batches) == 5
        assert [len(labels) for _, labels in batches] == [4] * 5
        for _ in range(3):
            seen = indices(batches)
            assert len(set(seen)) == len(seen) == 20
            assert set(seen) <= set(range(23))

    def test_every_label_stays_with_its_input(self, lazy):
        for inputs, labels in Batches(numbered(23, lazy), 4, CPU, train=True):
            assert torch.equal(inputs[:, 0, 0, 0].long() % 5, labels)

    def test_every_epoch_is_shuffled_anew(self, lazy):
        batches = Batches(numbered(23, lazy), 4, CPU, train=True)
        first, second = indices(batches), indices(batches)

        assert first != second
        assert first != sorted(first)

    @pytest.mark.parametrize("augment", ["none", "crop-flip"])
    def test_the_same_seed_gives_the_same_epochs(self, lazy, augment):
        def made(seed: int) -> list[list[torch.Tensor]]:
            data = numbered(23, lazy)
            return epochs(Batches(data, 4, CPU, train=True, seed=seed, augment=augment), 3)

        assert same(made(7), made(7))
        assert not same(made(7), made(8))

    def test_the_global_random_state_counts_for_nothing(self, lazy):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = indices(Batches(numbered(23, lazy), 4, CPU, train=True))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)

        assert indices(Batches(numbered(23, lazy), 4, CPU, train=True)) == first

    def test_a_batch_as_large_as_the_data_is_the_whole_of_it(self, lazy):
        batches = Batches(numbered(23, lazy), 23, CPU, train=True)

        assert len(batches) == 1
        assert sorted(indices(batches)) == list(range(23))

    def test_a_batch_larger_than_the_data_is_refused(self, lazy, complains):
        with complains("batch_size=24", "23 training examples", "lower it"):
            Batches(numbered(23, lazy), 24, CPU, train=True)


@pytest.mark.parametrize("lazy", [False, True])
class TestValidation:
    def test_batches_come_in_order_and_complete(self, lazy):
        batches = Batches(numbered(23, lazy), 4, CPU, train=False)

        for _ in range(2):
            assert indices(batches) == list(range(23))
        assert len(batches) == 6
        assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 3]

    def test_no_batch_is_empty_when_the_size_divides_the_data(self, lazy):
        batches = Batches(numbered(20, lazy), 4, CPU, train=False)

        assert len(batches) == len(list(batches)) == 5

    def test_images_are_not_augmented(self, lazy):
        ramp = torch.arange(36, dtype=torch.float32).reshape(1, 1, 6, 6).repeat(9, 1, 1, 1)
        split = ramp, torch.zeros(9, dtype=torch.long)
        data = Data(*(Lazy(*split) if lazy else split for _ in range(2)), 1)
        batches = Batches(data, 4, CPU, train=False, augment="crop-flip")

        assert torch.equal(torch.cat([inputs for inputs, _ in batches]), ramp)


@pytest.mark.parametrize("lazy", [False, True])
def test_bytes_are_scaled_and_then_normalised_per_channel(lazy):
    image = torch.tensor([[[0, 255]], [[51, 204]]], dtype=torch.uint8)  # [2, 1, 2]
    split = torch.stack([image, image]), torch.zeros(2, dtype=torch.long)
    data = Data(
        *(Lazy(*split) if lazy else split for _ in range(2)), 1, mean=(0.5, 0.2), std=(0.25, 0.3)
    )

    # (0 - 0.5) / 0.25, (1 - 0.5) / 0.25; (0.2 - 0.2) / 0.3, (0.8 - 0.2) / 0.3
    expected = torch.tensor([[[-2.0, 2.0]], [[0.0, 2.0]]])
    for train in (True, False):
        inputs, _ = next(iter(Batches(data, 2, CPU, train=train)))
        assert inputs.dtype == torch.float32
        assert torch.allclose(inputs, expected.expand(2, 2, 1, 2), atol=1e-6)


@pytest.mark.parametrize("lazy", [False, True])
def test_bytes_are_only_scaled_where_they_are_not_to_be_normalised(lazy):
    image = torch.tensor([[[0, 255]], [[51, 204]]], dtype=torch.uint8)
    split = torch.stack([image, image]), torch.zeros(2, dtype=torch.long)
    data = Data(
        *(Lazy(*split) if lazy else split for _ in range(2)), 1, mean=(0.5, 0.2), std=(0.25, 0.3)
    )

    expected = torch.tensor([[[0.0, 1.0]], [[0.2, 0.8]]])
    for train in (True, False):
        inputs, _ = next(iter(Batches(data, 2, CPU, train=train, normalize=False)))
        assert inputs.dtype == torch.float32
        assert torch.allclose(inputs, expected.expand(2, 2, 1, 2), atol=1e-7)


def test_floats_are_normalised_but_not_scaled():
    data = numbered(4, mean=(1.0, 2.0), std=(2.0, 4.0))
    inputs, _ = next(iter(Batches(data, 4, CPU, train=False)))

    assert inputs[:, 0, 0, 0].tolist() == [-0.5, 0.0, 0.5, 1.0]
    assert inputs[:, 1, 0, 0].tolist() == [-0.5, -0.25, 0.0, 0.25]


def test_inputs_without_a_mean_come_as_they_are():
    inputs, _ = next(iter(Batches(numbered(4), 4, CPU, train=False)))

    assert inputs[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_features_are_normalised_per_column():
    features = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    split = features, torch.tensor([0, 1])
    data = Data(split, split, 2, mean=(2.0, 20.0), std=(1.0, 5.0))
    inputs, _ = next(iter(Batches(data, 2, CPU, train=False)))

    assert inputs.tolist() == [[-1.0, -2.0], [1.0, 2.0]]


def test_training_images_are_augmented_before_they_are_normalised():
    # With a mean away from zero, padding after normalisation would still show; what must not
    # come out is a value that no pixel has.
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    data = Data(*[(images, torch.zeros(16, dtype=torch.long))] * 2, 1, mean=(0.5,), std=(0.25,))
    plain = torch.cat([x for x, _ in Batches(data, 16, CPU, train=True, seed=1)])
    moved = torch.cat(
        [x for x, _ in Batches(data, 16, CPU, train=True, seed=1, augment="crop-flip")]
    )

    assert not torch.equal(plain, moved)
    assert all(torch.isin(after, before).all() for before, after in zip(plain, moved, strict=True))


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_processes_that_read_change_no_batch_of_any_epoch(augment):
    def made(workers: int) -> list[list[torch.Tensor]]:
        data = numbered(23, lazy=True)
        batches = Batches(data, 4, CPU, train=True, seed=3, augment=augment, loader_workers=workers)
        return epochs(batches, 3)

    none, two = made(0), made(2)
    for epoch, (expected, got) in enumerate(zip(none, two, strict=True)):
        assert same([expected], [got]), f"epoch {epoch} differs"


class Faulty(Lazy):
    """The numbered data without ``targets``, wrong at one index."""

    def __init__(self, fault: str = "", at: int = 13, n: int = 23) -> None:
        self.inputs = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).repeat(1, 2, 6, 6)
        self.fault, self.at = fault, at

    def __getitem__(self, index: int):
        image, label = self.inputs[index].clone(), index % 5
        if index != self.at:
            return image, label
        match self.fault:
            case "label":
                return image, 7
            case "negative label":
                return image, -1
            case "nan":
                image[1, 2, 3] = float("nan")
            case "infinity":
                image[1, 2, 3] = float("-inf")
            case "shape":
                return image[:, :, :5], label
            case "file":
                raise OSError("photo_13.png is truncated\nsecond line")
            case "own":
                raise LRRTError("photo_13.png has no colour: convert it")
            case "key":
                raise KeyError
            case "kind":
                return image
        return image, label


FAULTS = {
    "label": ["example 13", "label 7", "outside 0 to 4", "num_classes"],
    "negative label": ["example 13", "label -1", "outside 0 to 4"],
    "nan": ["example 13", "NaN", "clean the data"],
    "infinity": ["example 13", "infinite", "clean the data"],
    "shape": ["cannot be read", "one shape"],
    "file": ["cannot be read", "OSError: photo_13.png is truncated", "remove it"],
    "own": ["photo_13.png has no colour: convert it"],
    "key": ["cannot be read", "KeyError"],
}


@pytest.mark.parametrize(
    ("fault", "train", "workers"),
    [
        *((fault, train, 0) for fault in FAULTS for train in (True, False)),
        ("file", True, 1),
        ("own", False, 1),
        ("key", False, 1),
        ("shape", True, 1),
    ],
)
def test_an_example_that_cannot_be_used_is_named_in_one_line(complains, fault, workers, train):
    splits = {"train": Faulty(), "val": Faulty(), ("train" if train else "val"): Faulty(fault)}
    data = Data(**splits, num_classes=5)
    batches = Batches(data, 23, CPU, train=train, loader_workers=workers)
    where = [] if fault == "own" else ["train" if train else "val"]
    with complains(*FAULTS[fault], *where):
        list(batches)


@pytest.mark.parametrize("fault", ["label", "nan", "file", "own", "kind"])
def test_an_example_of_a_representative_batch_that_cannot_be_used_is_named_too(complains, fault):
    batches = Batches(Data(Faulty(), Faulty(fault), 5), 4, CPU, train=False)

    with complains("13"):
        batches.representative(batches.size)


@pytest.mark.parametrize("size", [10, 33, 100])
def test_every_class_has_its_share_of_a_representative_batch(size):
    labels = torch.tensor(np.repeat([0, 1, 2, 1], [50, 20, 100, 30]))  # 25 %, 25 %, 50 %
    split = torch.rand(200, 2), labels[torch.randperm(200)]
    batches = Batches(Data(split, split, 3), 4, CPU, train=False, normalize=False)
    inputs, chosen = batches.representative(size)

    assert len({tuple(row) for row in inputs.tolist()}) == size
    counts = np.bincount(chosen, minlength=3)
    assert np.abs(counts - size * np.array([0.25, 0.25, 0.5])).max() <= 1
    assert torch.equal(batches.representative(size)[0], inputs)


def test_a_representative_batch_of_numbers_spreads_over_them_and_is_at_most_all():
    targets = torch.arange(20.0)[torch.randperm(20)][:, None]
    split = torch.rand(20, 2), targets
    batches = Batches(Data(split, split, None), 4, CPU, train=False)

    assert sorted(batches.representative(4)[1].flatten().tolist()) == [2, 7, 12, 17]
    assert torch.equal(batches.representative(99)[1], targets)


def test_an_example_that_is_no_pair_is_described(complains):
    data = Data(Faulty("kind", at=0), Faulty("kind", at=0), 5)
    with complains("the first train example", "(input tensor, target)"):
        _ = data.input_shape
    with complains("a batch of the val split", "Tensor", "(input tensor, target)"):
        list(Batches(data, 1, CPU, train=False))


def test_values_whose_sum_overflows_are_no_fault():
    large = Faulty()
    large.inputs[:] = 3e38

    assert len(list(Batches(Data(large, large, 5), 4, CPU, train=True))) == 5


class Noise(Lazy):
    def __getitem__(self, index: int):
        return torch.rand(3), int(self.targets[index])


def test_the_seed_reaches_the_processes_that_read():
    split = Noise(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))

    def drawn(seed: int) -> set[float]:
        batches = Batches(Data(split, split, 1), 4, CPU, train=True, seed=seed, loader_workers=1)
        return {float(value) for inputs, _ in batches for value in inputs[:, 0]}

    first = drawn(1)
    assert len(first) == 8
    assert drawn(1) == first
    assert not drawn(2) & first
