"""How a model is divided among ranks, as far as one process can tell."""

import pytest
import torch
from torch import nn

from lrrt_stage import LRRTError
from pipeline.models.networks import build_model
from pipeline.ranks import model as of_ranks
from pipeline.ranks.group import Ranks
from pipeline.ranks.model import share_model
from pipeline.ranks.options import RankOptions
from pipeline.ranks.share import Share


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.lists = nn.ModuleList(
            [nn.ModuleList([Block(), Block()]), nn.ModuleDict({"a": Block()})]
        )
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block())


def units(model):
    return [type(each).__name__ for each in of_ranks._units(model)]


def test_blocks_are_the_entries_of_lists_and_sequences_that_have_weights():
    assert units(Nested()) == ["Block", "Block", "Block", "Linear", "Block"]
    assert units(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block())) == ["Linear", "Block"]
    assert units(nn.Linear(4, 4)) == []
    assert len(units(build_model("resnet20", {}, (3, 32, 32), 10))) > 9


def test_transformers_names_its_blocks_and_inner_ones_come_first():
    model = Nested()
    model._no_split_modules = ["Block", "Sequential"]
    found = of_ranks._units(model)
    assert [type(each).__name__ for each in found].count("Block") == 4
    for index, unit in enumerate(found):
        later = found[index + 1 :]
        assert not [inner for inner in unit.modules() if inner in later]


def test_a_block_in_two_lists_is_one_unit():
    model = nn.Module()
    model.first, model.second = nn.ModuleList([Block()]), nn.ModuleList()
    model.second.append(model.first[0])
    assert units(model) == ["Block"]


def ranks(strategy):
    return Ranks(Share(0, 2), RankOptions(2, strategy), None)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_parameters_that_are_nowhere_are_refused(strategy):
    model, scale = nn.Linear(4, 2), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    with pytest.raises(LRRTError, match="SGD"):
        share_model(ranks(strategy), model, optimizer, lambda batch: scale)


def test_an_optimizer_with_a_state_is_refused_by_fsdp():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(LRRTError, match="has a state already"):
        share_model(ranks("fsdp"), model, optimizer, lambda batch: batch)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_that_ranks_cannot_share_is_named(kind):
    with pytest.raises(LRRTError, match=f"processes=2 cannot share batches on {kind}"):
        RankOptions(2).require_device(kind)
