from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from lrrt_stage import LRRTError
from pipeline.data.batches import Batches
from pipeline.data.splits import Data


def images(n: int = 6) -> torch.Tensor:
    return torch.arange(n * 12, dtype=torch.float32).reshape(n, 3, 2, 2)


def labels(n: int = 6) -> torch.Tensor:
    return torch.arange(n) % 3


class Lazy(Dataset):
    def __init__(self, targets, classes=("a", "b", "c")) -> None:
        self.targets = targets
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return images()[index % 6], int(self.targets[index])


def test_shape_and_sizes_are_those_of_the_splits():
    data = Data((images(), labels()), (images(4), labels(4)), 3)

    assert data.input_shape == (3, 2, 2)
    assert data.sizes == (6, 4)


def test_shape_and_sizes_of_a_dataset_that_is_read_batch_by_batch():
    data = Data(Lazy([0, 1, 2, 0]), Lazy([0, 1]), 3)

    assert data.input_shape == (3, 2, 2)
    assert data.sizes == (4, 2)


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_split_is_named(complains, name):
    splits = {"train": (images(), labels()), "val": (images(), labels())}
    splits[name] = (images()[:0], labels()[:0])

    with complains(f"the {name} split is empty", "check the dataset"):
        Data(**splits, num_classes=3)


def test_an_empty_dataset_is_named(complains):
    with complains("the val split is empty"):
        Data(Lazy([0, 1, 2]), Lazy([]), 3)


@pytest.mark.parametrize(("wrong", "span"), [(3, "0 to 3"), (-1, "-1 to 2")])
@pytest.mark.parametrize("name", ["train", "val"])
def test_labels_outside_the_classes_are_named(complains, wrong, span, name):
    bad = labels()
    bad[0] = wrong
    if wrong > 0:
        bad[1] = 0
    splits = {"train": (images(), labels()), "val": (images(), labels()), name: (images(), bad)}

    with complains(f"the {name} labels go from {span}", "outside 0 to 2", "num_classes"):
        Data(**splits, num_classes=3)


def test_labels_of_a_dataset_outside_the_classes_are_named(complains):
    with complains("the train labels go from 0 to 3", "outside 0 to 2"):
        Data(Lazy([0, 3]), Lazy([0, 1]), 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_counted(complains, bad):
    dirty = images()
    dirty[1, 0, 0, 0] = dirty[2, 1, 1, 1] = bad

    with complains("the val inputs hold 2 NaN or infinite values", "clean the data"):
        Data((images(), labels()), (dirty, labels()), 3)


def test_inputs_without_a_label_each_are_refused(complains):
    with complains("6 inputs and 5 labels"):
        Data((images(), labels(5)), (images(), labels()), 3)


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


class TestOf:
    def test_data_is_taken_as_it_is(self):
        data = Data((images(), labels()), (images(), labels()), 5)
        assert Data.from_factory(data, "mine") is data

    @pytest.mark.parametrize("pair", [tuple, list])
    def test_the_classes_of_a_pair_of_tensors_are_counted(self, pair):
        data = Data.from_factory(
            pair([pair([images(), labels()]), pair([images(4), labels(4)])]), "mine"
        )

        assert data.num_classes == 3
        assert data.sizes == (6, 4)

    def test_the_classes_of_a_dataset_are_its_own(self):
        assert Data.from_factory((Lazy([0, 1]), Lazy([0])), "mine").num_classes == 3

    def test_a_dataset_that_does_not_know_its_classes_is_refused(self, complains):
        with complains("mine", "classes", "num_classes"):
            Data.from_factory((Lazy([0, 1], classes=None), Lazy([0], classes=None)), "mine")

    @pytest.mark.parametrize(
        ("made", "description"),
        [
            (None, "None"),
            ({"train": 1}, "dict"),
            ((images(), labels()), "float32 tensor of shape [6, 3, 2, 2]"),
            (((images(), [0, 1]), (images(), labels())), "list"),
            ([1, 2, 3], "int, int, int"),
        ],
    )
    def test_anything_else_is_described_beside_what_is_expected(self, complains, made, description):
        with complains("mine returned", description, "pipeline.data.Data"):
            Data.from_factory(made, "mine")

    def test_an_empty_pair_is_refused(self):
        empty = (images()[:0], labels()[:0])
        with pytest.raises(LRRTError, match="the train split is empty"):
            Data.from_factory((empty, empty), "mine")
