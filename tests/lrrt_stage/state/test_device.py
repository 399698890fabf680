import pytest
import torch

from lrrt_stage import LRRTError, deterministic, resolve_device
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


def test_a_device_without_values_is_refused():
    with pytest.raises(LRRTError, match="'meta'"):
        resolve_device("meta")


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
