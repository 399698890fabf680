"""What a range test shows a network to gain, by hand-worked numbers."""

import math

import numpy as np
import pytest

from lrrt_stage import LRCurve, LRRTError, shows_gain
from lrrt_stage.guard.gain import Gain

LR = 10 ** (-7 + np.arange(30) / 10)
VALLEY = np.array([4.0] * 20 + [3.0, 2.0, 1.0, 2.0] + [4.0] * 6)


def test_the_fall_and_what_it_took_are_those_up_to_the_lowest_loss():
    gain = Gain.from_curve(LRCurve(LR, VALLEY, stop="diverged", probe_loss=VALLEY / 2))
    assert gain.start == 4.0
    assert gain.fall == 1.5  # of the probe, from 2 to 0.5
    assert gain.steps == 23
    assert gain.distance == pytest.approx(LR[:23].sum())
    assert gain.losses == 20  # without noise, the least number
    assert gain.clear == 1.5


def test_without_a_probe_the_fall_is_one_of_medians():
    long = np.array([4.0] * 40 + [*np.linspace(4.0, 2.0, 30)] + [1.0] + [2.0] * 19 + [4.0] * 10)
    gain = Gain.from_curve(LRCurve(10 ** (-7 + np.arange(100) / 12), long, stop="diverged"))
    # A single loss of 1 is not what the loss fell to.
    assert gain.fall == pytest.approx(2.0, abs=0.05)


def test_a_training_loss_that_falls_less_than_the_probe_counts():
    # As with dropout, which is off for the probe.
    less = 4.0 - (4.0 - VALLEY) / 3
    gain = Gain.from_curve(LRCurve(LR, less, stop="diverged", probe_loss=VALLEY))
    assert gain.fall == pytest.approx(1.0)


@pytest.mark.parametrize("probed", [True, False])
def test_a_short_curve_and_one_that_is_not_finite_at_its_end_are_read(probed):
    short = np.array([4.0] * 6 + [3.0, 2.0, 1.0, 2.0, 4.0, np.nan])
    probe = {"probe_loss": [*short[:-1].tolist(), 4.0]} if probed else {}
    gain = Gain.from_curve(LRCurve(LR[:12], short, stop="non-finite", **probe))
    assert gain.start == 4.0
    assert 0 < gain.fall <= 3.0


def test_noise_takes_more_losses():
    noise = np.tile([0.5, -0.5], 15)
    gain = Gain.from_curve(LRCurve(LR, VALLEY + noise, stop="diverged", probe_loss=VALLEY))
    # Neighbours differ by 1 in the median; normal noise would have this standard deviation.
    sigma = 1 / (0.6745 * math.sqrt(2))
    assert gain.losses == math.ceil((1.2533 * sigma * 15 / 3.0) ** 2)
    assert gain.error == pytest.approx(1.2533 * sigma / math.sqrt(gain.losses))
    assert gain.error == pytest.approx(3.0 / 15, rel=0.01)
    assert gain.clear == pytest.approx(max(3.0, 1.2533 * sigma * 15 / math.sqrt(20)))


def test_a_loss_that_never_fell_shows_none():
    flat = LRCurve(LR, np.full(30, 2.0), probe_loss=np.full(30, 2.0))
    with pytest.raises(LRRTError, match=r"shows no fall of the loss.*attempts=1"):
        Gain.from_curve(flat)
    assert not shows_gain(flat)
    assert shows_gain(LRCurve(LR, VALLEY, stop="diverged"))


def test_what_an_answer_gains_that_is_alike_for_all_is_due_as_well():
    # From 9 to 4 by such an answer, and from 4 to 1 by telling examples from another.
    baseline = np.array([9.0, 6.0, *[4.0] * 28])
    probe = np.r_[baseline[:20], VALLEY[20:]]
    curve = LRCurve(LR, probe, stop="diverged", probe_loss=probe, probe_baseline=baseline)
    gain = Gain.from_curve(curve)
    assert gain.fall == 3.0
    assert gain.start - gain.chance == 5.0


def test_what_a_new_head_tells_apart_by_luck_is_not_due():
    shrinking = np.r_[np.full(40, 4.0), np.geomspace(4.0, 1.0, 20), np.full(40, 1.0)]
    learned = np.r_[np.zeros(60), np.linspace(0.1, 0.4, 10), np.zeros(30)]
    probe = shrinking - 0.5 * shrinking / 4.0 - learned
    lr = np.geomspace(1e-7, 100, 100)
    gain = Gain.from_curve(LRCurve(lr, probe, probe_loss=probe, probe_baseline=shrinking))
    # By such an answer from 4 to 1, of which the luck of 0.5 loses three quarters.
    assert gain.start - gain.chance == pytest.approx(3.0 - 0.375)
