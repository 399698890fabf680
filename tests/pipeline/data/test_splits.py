from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from pipeline.data.batches import Batches
from pipeline.data.splits import Data


def images(n: int = 6) -> torch.Tensor:
    return torch.arange(n * 12, dtype=torch.float32).reshape(n, 3, 2, 2)


def labels(n: int = 6) -> torch.Tensor:
    return torch.arange(n) % 3


class Lazy(Dataset):
    def __init__(self, targets, size: int | None = None) -> None:
        self.targets = targets
        self.size = len(targets) if size is None else size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        return images()[index % 6], int(self.targets[index])


@pytest.mark.parametrize(
    "train", [(images(4), labels(4)), Lazy([0, 1, 2, 0])], ids=["in memory", "on disk"]
)
def test_shape_and_sizes_are_those_of_the_splits(train):
    data = Data(train, (images(), labels()), 3)

    assert data.input_shape == (3, 2, 2)
    assert data.sizes == (4, 6)


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize(
    "empty", [(images()[:0], labels()[:0]), Lazy([])], ids=["in memory", "on disk"]
)
def test_an_empty_split_is_named(complains, name, empty):
    splits = {"train": (images(), labels()), "val": Lazy([0, 1, 2]), name: empty}
    with complains(f"the {name} split is empty"):
        Data(**splits, num_classes=3)


@pytest.mark.parametrize("wrong", [3, -1])
@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_label_outside_the_classes_is_named_with_its_example(complains, wrong, name, lazy):
    targets = labels()
    targets[4] = wrong
    bad = Lazy(targets) if lazy else (images(), targets)
    splits = {"train": (images(), labels()), "val": (images(), labels()), name: bad}
    with complains(f"example 4 of the {name} split", f"label {wrong}", "0 to 2", "num_classes"):
        Data(**splits, num_classes=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (6,)])
def test_an_input_that_is_not_finite_is_named_with_its_example(complains, bad, shape):
    dirty = torch.zeros(shape)
    dirty[2] = bad
    with complains("example 2 of the val split", "NaN", "clean the data"):
        Data((images(), labels()), (dirty, labels()), 3)


@pytest.mark.parametrize("bad", [(images(), labels(5)), Lazy([0, 1], size=3)])
def test_inputs_without_a_label_each_are_refused(complains, bad):
    with complains("inputs and", "labels"):
        Data(bad, (images(), labels()), 3)


@pytest.mark.parametrize("bad", [labels().float(), labels()[:, None]])
def test_labels_that_are_not_class_indices_are_described(complains, bad):
    with complains("integer class indices", str(list(bad.shape))):
        Data((images(), bad), (images(), labels()), 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integer_labels_of_any_width_can_be_trained_on(dtype):
    narrow = (images(), labels().to(dtype))
    batches = Batches(Data(narrow, narrow, 3), 2, torch.device("cpu"), train=True)
    _, targets = next(iter(batches))

    loss = torch.nn.functional.cross_entropy(torch.zeros(2, 3), targets)
    assert float(loss) == pytest.approx(1.0986123)  # ln 3


class TestDigest:
    def data(self, **changes) -> Data:
        parts = {"train": (images(), labels()), "val": (images(4), labels(4)), "num_classes": 3}
        return Data(**{**parts, **changes})

    def test_is_equal_for_equal_content(self):
        assert self.data().digest == self.data().digest

    def test_changes_with_one_value(self):
        changed = images()
        changed[5, 2, 1, 1] += 1
        assert self.data(train=(changed, labels())).digest != self.data().digest

    def test_changes_with_one_label(self):
        changed = labels(4)
        changed[3] = 1
        assert self.data(val=(images(4), changed)).digest != self.data().digest

    def test_changes_when_the_splits_are_swapped(self):
        swapped = self.data(train=(images(4), labels(4)), val=(images(), labels()))
        assert swapped.digest != self.data().digest

    @pytest.mark.parametrize("container", [list, torch.tensor])
    def test_of_a_dataset_on_disk_changes_with_one_label_in_the_middle(self, container):
        targets = [0] * 5000
        changed = [0] * 2500 + [1] + [0] * 2499
        one, other = (
            Data(Lazy(container(each)), Lazy([0, 1]), 3).digest for each in (targets, changed)
        )
        assert one != other
