"""The stop rule, on curves that are written down: a start at a level, a fall, an explosion."""

import numpy as np
import pytest
import torch
from torch import nn

from lrrt_stage import NoSuggestion, range_test, suggest
from lrrt_stage.measure.loss_recorder import LossRecorder

NOISE = np.random.default_rng(0).normal(size=100)
LR = np.geomspace(1e-7, 100, 100)
FALL = np.r_[np.zeros(50), -np.linspace(0, 1, 20), -np.ones(5), 3.0 ** np.arange(25)]
ORDINARY = 2.3 + FALL + 0.05 * NOISE


def recorded(losses, stop_multiple=4.0):
    recorder = LossRecorder(np.geomspace(1e-7, 100, len(losses)), stop_multiple, 0.98)
    for loss in losses:
        recorder.add(torch.tensor(loss, dtype=torch.float64))
        if recorder.should_stop():
            break
    return recorder.curve()


def test_an_ordinary_curve_ends_soon_after_it_explodes():
    curve = recorded(ORDINARY)
    assert curve.stop == "diverged"
    # The average takes a thirtieth of the loss, and has to rise by 3 · 1: the loss is about 100.
    assert 78 <= len(curve) <= 82


@pytest.mark.parametrize("shift", [2.3, ORDINARY[0], 500.0, -500.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_neither_a_constant_added_to_the_loss_nor_its_unit_matters(shift, scale):
    plain, curve = recorded(ORDINARY), recorded((ORDINARY - shift) * scale)
    assert (len(curve), curve.stop) == (len(plain), "diverged")
    assert suggest(curve).max == pytest.approx(suggest(plain).max, rel=1e-9)


@pytest.mark.parametrize("outliers", [[0], [3], [4, 5], [0, 9]])
@pytest.mark.parametrize("size", [-1e6, 1e3, 1e6])
def test_extreme_batches_at_the_start_do_not_count(outliers, size):
    losses = ORDINARY.copy()
    losses[outliers] = size
    assert abs(len(recorded(losses)) - len(recorded(ORDINARY))) <= 3


@pytest.mark.parametrize("at", [12, 30, 60])
def test_a_single_extreme_batch_does_not_stop_the_test(at):
    losses = ORDINARY.copy()
    losses[at] += 100
    assert abs(len(recorded(losses)) - len(recorded(ORDINARY))) <= 3


def test_first_batches_that_spread_widely_do_not_stop_the_test():
    assert recorded(5 * NOISE).stop == "completed"
    assert recorded(5 * NOISE + 10 * FALL).stop == "diverged"


ROUNDING = np.random.default_rng(1).integers(-2, 3, 100) * 2.0**-22


@pytest.mark.parametrize(
    "losses",
    [
        np.zeros(100),
        np.where(np.arange(100) < 40, 0, ROUNDING),
        np.where(np.arange(100) < 40, 0, LR * np.abs(NOISE)),
        np.linspace(0, 1, 100),
        np.tanh(LR) - 1,
    ],
    ids=["constant", "rounding", "noise that grows with the rate", "slow growth", "bounded"],
)
def test_a_loss_without_an_explosion_is_followed_to_the_end(losses):
    assert (len(recorded(losses)), recorded(losses).stop) == (100, "completed")


@pytest.mark.parametrize(("n", "growth"), [(20, 30.0), (50, 3.0), (400, 1.5), (1000, 1.2)])
def test_short_and_long_ramps_end_soon_after_the_explosion_too(n, growth):
    half = n // 2
    losses = np.r_[np.zeros(half - 5), -np.linspace(0, 1, 5), growth ** np.arange(half)]
    curve = recorded(losses + 0.01 * np.resize(NOISE, n))
    assert curve.stop == "diverged"
    assert curve.loss[-2] < 1000


def test_a_test_that_ended_too_early_names_the_option():
    explosion = np.r_[np.ones(5), 1 + 10.0 ** np.arange(15)]
    curve = recorded(explosion, 1.01)
    assert curve.stop == "diverged"
    with pytest.raises(NoSuggestion, match="raise stop_multiple") as error:
        suggest(curve)
    assert "\n" not in str(error.value)


def blobs():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(640) % 4
    x = torch.randn(4, 8, generator=generator)[y] * 2 + torch.randn(640, 8, generator=generator)
    order = torch.randperm(640, generator=generator)
    return list(zip(x[order].split(32), y[order].split(32), strict=True))


def test_a_training_loss_that_starts_at_zero_gets_the_suggestion_of_one_that_does_not():
    def suggested(shift):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        curve = range_test(model, optimizer, lambda o, t: entropy(o, t) - shift, blobs())
        return curve.stop, len(curve), suggest(curve).max

    entropy = nn.functional.cross_entropy
    stop, length, maximum = suggested(0.0)
    assert stop == "diverged"
    for shift in (np.log(4), 100.0):
        assert suggested(shift) == (stop, length, pytest.approx(maximum, rel=1e-3))
