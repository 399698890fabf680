"""The probe: a fixed batch that is evaluated at every iteration, and changes nothing."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRTError, Validation, range_test
from lrrt_stage.probe import Probe


@pytest.fixture
def start():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1)
    )
    x = torch.randn(64, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probe = (torch.randn(8, 4), torch.randn(8, 1))
    return model, optimizer, loader, probe


def test_the_curve_is_the_same_with_it_and_all_is_left_as_it_was(start):
    model, optimizer, loader, probe = start
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    without = range_test(model, optimizer, mse_loss, loader, iterations=40)
    torch.manual_seed(1)
    probed = range_test(model, optimizer, mse_loss, loader, iterations=40, probe=probe)
    assert np.array_equal(without.loss, probed.loss)
    assert without.probe_loss is None
    assert probed.probe_loss.shape == probed.loss.shape
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_its_loss_is_that_at_the_weights_before_the_step(start):
    model, optimizer, loader, probe = start
    first = float(Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))())
    curve = range_test(model, optimizer, mse_loss, loader, iterations=40, probe=probe)
    assert curve.probe_loss[0] == pytest.approx(first)


def test_batch_norm_takes_the_probes_own_statistics_and_dropout_is_off(start):
    model, _, _, (x, y) = start
    with torch.no_grad():
        hidden = model[0](x)
        normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        by_hand = mse_loss(model[4](normal.relu()), y)
    evaluate = Probe(model, (x, y), lambda batch: mse_loss(model(batch[0]), batch[1]))
    assert float(evaluate()) == pytest.approx(float(by_hand), rel=1e-5)
    assert model[1].running_mean.equal(torch.zeros(16))
    assert int(model[1].num_batches_tracked) == 0


def test_statistics_are_put_back_also_after_an_error(start):
    model, _, _, probe = start

    def fails(batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Probe(model, probe, fails)()
    assert model[1].running_mean is not None


def test_a_probe_and_a_validation_go_together(start):
    model, optimizer, loader, probe = start
    validation = Validation([probe], [probe], full_looks=2)
    curve = range_test(
        model, optimizer, mse_loss, loader, iterations=40, probe=probe, validation=validation
    )
    assert np.isfinite(curve.full_val_loss).sum() == 2
    # In evaluation mode the running statistics count.
    assert not np.array_equal(curve.probe_loss, curve.val_loss)


def test_a_probe_that_is_no_batch_is_refused_before_the_first_step(start):
    model, optimizer, loader, _ = start
    with pytest.raises(LRRTError, match="a batch is str"):
        range_test(model, optimizer, mse_loss, loader, iterations=40, probe="validation")
