from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lrrt_stage import LRRTError, deterministic, range_test, resolve_device
from lrrt_stage.state.device import to_device


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    "name", ["cuda:77", "tpu", "cpu:x", "hpu", "privateuseone", "lazy", "vulkan", "ideep"]
)
def test_a_device_that_is_not_there_is_named_in_one_line(name):
    with pytest.raises(LRRTError, match=f"'{name}' is not available") as error:
        resolve_device(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_deterministic_puts_torchs_settings_back():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


def test_nested_batches_are_walked_and_only_images_change_their_layout():
    image = torch.randn(2, 3, 4, 4)
    batch = {"a": [image, ("text", 3)], "b": torch.ones(2, 3)}
    moved = to_device(batch, torch.device("cpu"), torch.channels_last)
    assert moved["a"][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved["a"][0], image)
    assert moved["a"][1] == ("text", 3)
    assert moved["b"].is_contiguous()


@dataclass(frozen=True)
class Record:
    a: torch.Tensor
    b: torch.Tensor


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Given(dict):
    """A dict whose constructor takes something else."""

    def __init__(self, name, **entries):
        super().__init__(**entries)
        self.name = name


class OwnMethod:
    """Moves itself in place, and returns nothing."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def to(self, device):
        self.a, self.b = self.a.to(device), self.b.to(device)


class NamedDevice(OwnMethod):
    def to(self, *, device):
        super().to(device)


class Edge(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor
    to: int = 0


A, B = torch.ones(2, 3), torch.zeros(2)
CONTAINERS = {
    "dict": {"a": A, "b": B},
    "defaultdict": defaultdict(list, a=A, b=B),
    "OrderedDict": OrderedDict(a=A, b=B),
    "UserDict": UserDict(a=A, b=B),
    "dict with a constructor of its own": Given("one", a=A, b=B),
    "named tuple": Pair(A, B),
    "dataclass": Record(A, B),
    "object with a method to": OwnMethod(A, B),
    "object with a method to of named arguments": NamedDevice(A, B),
    "named tuple with a field to": Edge(A, B),
}


# "meta" is another device on every machine: what was moved there has no values any more.
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_of_every_kind_are_moved_and_keep_their_type(name):
    batch = CONTAINERS[name]
    moved = to_device(batch, torch.device("meta"), torch.preserve_format)
    assert type(moved) is type(batch)
    get = getattr if not hasattr(batch, "keys") else lambda made, key: made[key]
    assert get(moved, "a").device.type == get(moved, "b").device.type == "meta"
    assert get(batch, "a") is A
    assert get(batch, "b") is B


class Stuck(OwnMethod):
    def to(self, device):
        raise OSError("no such place\nat all")


class Parameterless(OwnMethod):
    def to(self):
        return self


@pytest.mark.parametrize("kind", [Stuck, Parameterless])
def test_a_method_that_does_not_move_is_named(kind):
    message = f"{kind.__name__}, whose method to.*'meta'.*: correct the method"
    with pytest.raises(LRRTError, match=message) as error:
        to_device([kind(A, B)], torch.device("meta"), torch.preserve_format)
    assert "\n" not in str(error.value)


def test_a_mapping_that_cannot_be_changed_becomes_a_dict():
    moved = to_device(MappingProxyType({"a": A}), torch.device("meta"), torch.preserve_format)
    assert moved["a"].device.type == "meta"


def test_what_is_no_tensor_stays_as_it_is():
    batch = ["text", None, 3, slice(2), torch.Tensor, (x for x in ())]
    moved = to_device(batch, torch.device("meta"), torch.preserve_format)
    assert moved is not batch
    assert all(one is other for one, other in zip(moved, batch, strict=True))


def test_a_packed_sequence_keeps_its_lengths_on_the_cpu():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    moved = to_device([packed], torch.device("meta"), torch.preserve_format)[0]
    assert moved.data.device.type == "meta"
    assert moved.batch_sizes.tolist() == [2, 1, 1]


def test_sparse_tensors_have_no_layout_of_images():
    sparse = torch.ones(1, 2, 3, 4).to_sparse()
    assert to_device(sparse, torch.device("cpu"), torch.channels_last).is_sparse


@pytest.mark.gpu
def test_a_packed_sequence_runs_on_the_gpu():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    moved = to_device({"x": packed}, torch.device("cuda"), torch.preserve_format)
    assert torch.nn.LSTM(2, 2).cuda()(moved["x"])[0].data.device.type == "cuda"


def test_a_device_without_values_is_refused():
    with pytest.raises(LRRTError, match="'meta'"):
        resolve_device("meta")


def test_a_model_that_changes_its_inputs_does_not_change_the_batches():
    batches = [(torch.ones(4, 3), torch.zeros(4, 1))]
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"batch_loss": lambda pair: model(pair[0].mul_(0.9)).square().mean()}
    range_test(model, optimizer, None, batches, iterations=10, lr_end=1e-3, **options)
    assert batches[0][0].tolist() == [[1.0] * 3] * 4


class Fixed(tuple):
    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


@dataclass
class Unset:
    x: torch.Tensor
    later: torch.Tensor = field(init=False)


@pytest.mark.parametrize("batch", [Fixed(torch.ones(2), torch.ones(2)), Unset(torch.ones(2))])
def test_a_batch_that_cannot_be_made_again_is_named(batch):
    with pytest.raises(
        LRRTError, match=rf"a batch is {type(batch).__name__}.*to\(device\)"
    ) as error:
        to_device(batch, torch.device("cpu"), torch.preserve_format)
    assert "\n" not in str(error.value)
