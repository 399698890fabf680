"""Attempts at a training, by losses that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lrrt_stage import Attempt, AttemptsSpent, Guard, LRCurve, LRRange, LRRTError
from lrrt_stage.guard.gain import Gain

RANGE = LRRange(0.01, 0.1)
GAIN = Gain(
    start=4.0, fall=2.0, chance=4.0, steps=50, distance=1.0, losses=20, clear=2.0, error=0.0
)
LR = 10 ** (-7 + np.arange(30) / 10)
CURVE = LRCurve(LR, [4.0] * 20 + [3.0, 2.0, 1.0, 2.0] + [4.0] * 6, stop="diverged")


def lost_at(losses, lr=0.1, gain=GAIN):
    """Return the step at which an attempt with these losses is lost, and why."""
    attempt = Attempt(1, RANGE, gain)
    for step, loss in enumerate(losses, start=1):
        if attempt.watch(loss, lr):
            return step, attempt.reason
    return (attempt.steps, attempt.reason) if attempt.read() else None


def test_a_training_that_gains_is_not_lost():
    assert lost_at(np.geomspace(4.0, 0.01, 300)) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_noticed_at_the_next_read(bad):
    step, reason = lost_at([4.0] * 12 + [bad] + [4.0] * 30)
    assert step == 20
    assert reason == f"the loss was {bad} at step 13"


def test_one_in_the_last_steps_is_noticed_at_the_end():
    assert lost_at([*np.linspace(4.0, 1.0, 100), math.nan])[0] == 101


def test_a_loss_far_above_its_start_is_noticed_at_once():
    step, reason = lost_at([4.0] * 10 + [100.0] * 300)
    assert step <= 30
    assert "above its start" in reason


def test_a_loss_that_overshoots_and_comes_back_is_none():
    assert lost_at([4.0] * 10 + [9.0] * 8 + [*np.geomspace(4.0, 0.1, 100)]) is None


def test_three_quarters_of_what_was_gained_may_not_be_lost_again():
    fallen = [*np.linspace(4.0, 0.0, 100)]
    assert lost_at([*fallen, *[2.9] * 100]) is None
    step, reason = lost_at([*fallen, *[3.1] * 100])
    assert 100 < step <= 130
    assert "3.1 again" in reason


def test_half_of_what_the_range_test_gained_is_due_after_as_many_steps():
    assert lost_at([2.9] * 300) is None
    step, reason = lost_at([3.1] * 300)
    assert 50 < step <= 80
    assert "less than half of the way" in reason


def test_two_standard_errors_are_allowed_for_noise():
    noisy = replace(GAIN, error=0.1)
    assert lost_at([3.15] * 300, gain=noisy) is None
    assert lost_at([3.25] * 300, gain=noisy) is not None


def test_a_network_that_answers_alike_to_all_is_lost_however_far_its_loss_has_fallen():
    gain = Gain(
        start=9.0, fall=2.0, chance=4.0, steps=50, distance=1.0, losses=20, clear=2.0, error=0.0
    )
    assert lost_at([*np.linspace(9.0, 2.5, 40), *[2.5] * 200], gain=gain) is None
    step, reason = lost_at([*np.linspace(9.0, 4.0, 40), *[4.0] * 200], gain=gain)
    assert 50 < step <= 80
    assert "less than half of the way" in reason


def test_a_slow_start_is_given_the_distance_that_the_range_test_had():
    # 1.0 at 0.002 are 500 steps.
    assert lost_at([4.0] * 490, lr=0.002) is None
    assert 500 < lost_at([4.0] * 600, lr=0.002)[0] <= 530
    # Without its learning rates, those of the minimum of the range count: 100 steps.
    assert 100 < lost_at([4.0] * 300, lr=None)[0] <= 130


def test_noise_raises_no_alarm():
    rng = np.random.default_rng(0)
    noisy = Gain(
        start=4.0, fall=0.3, chance=4.0, steps=50, distance=1.0, losses=360, clear=2.0, error=0.02
    )
    for _ in range(50):
        falling = 3.6 + 0.4 * np.exp(-np.arange(1000) / 50) + rng.normal(0, 0.6, 1000)
        assert lost_at(falling, gain=noisy) is None


def test_losses_stay_on_the_device_between_reads(monkeypatch):
    reads = []
    item = torch.Tensor.to

    def to(self, *args, **kwargs):
        reads.extend([self.shape] if "cpu" in args else [])
        return item(self, *args, **kwargs)

    attempt = Attempt(1, RANGE, GAIN)
    losses = [torch.tensor(4.0 * 0.99**i, requires_grad=True) for i in range(1000)]
    monkeypatch.setattr(torch.Tensor, "to", to)
    for loss in losses:
        attempt.watch(loss, 0.1)
    assert attempt.steps == 1000
    assert reads.count((10,)) == 100


def test_in_a_long_training_losses_are_read_after_each_hundredth_of_its_steps():
    attempt, sizes = Attempt(1, RANGE, GAIN), []
    for _ in range(20_000):
        before = attempt.steps
        attempt.watch(1.0, 0.1)
        sizes += [attempt.steps - before] if attempt.steps > before else []
    assert sizes[:50] == [10] * 50
    assert 150 <= sizes[-1] <= 200


def test_without_a_gain_only_losses_that_are_not_finite_count():
    attempt = Attempt(1, RANGE)
    assert not any(attempt.watch(1e9) for _ in range(100))
    assert any(attempt.watch(math.nan) for _ in range(10))


class TestGuard:
    def test_the_next_attempt_has_a_third_of_the_learning_rates(self):
        guard = Guard(CURVE, RANGE)
        for attempt in guard:
            if attempt.number < 3:
                attempt.lose("it is too high")
        assert [each.range for each in guard.attempts] == [
            RANGE,
            LRRange(0.01 / 3, 0.1 / 3),
            LRRange(0.01 / 9, 0.1 / 9),
        ]
        assert [each.is_lost for each in guard.attempts] == [True, True, False]

    def test_one_that_is_not_lost_is_the_last(self):
        guard = Guard(CURVE, RANGE)
        assert [attempt.number for attempt in guard] == [1]
        assert [attempt.number for attempt in guard] == [1]  # anew

    def test_when_all_are_lost_it_says_so(self):
        with pytest.raises(AttemptsSpent, match=r"all 3 attempts were lost.*0\.0111 \(no\)"):
            for attempt in Guard(CURVE, RANGE):
                attempt.lose("no")
        with pytest.raises(AttemptsSpent, match=r"the training was lost with maximum LR 0\.1"):
            for attempt in Guard(CURVE, RANGE, attempts=1):
                attempt.lose("no")

    def test_losses_that_were_not_read_yet_count(self):
        guard = Guard(CURVE, RANGE)
        for attempt in guard:
            if attempt.number == 1:
                attempt.watch(math.nan)
        assert len(guard.attempts) == 2

    @pytest.mark.parametrize("attempts", [0, 5, -1, 2.5, "3", None])
    def test_the_number_of_attempts_is_from_1_to_4(self, attempts):
        with pytest.raises(LRRTError, match="attempts="):
            Guard(CURVE, RANGE, attempts)

    def test_what_is_no_range_or_has_no_gain_is_refused(self):
        with pytest.raises(LRRTError, match="lr_range"):
            Guard(CURVE, (0.01, 0.1))
        with pytest.raises(LRRTError, match="no fall"):
            Guard(LRCurve(LR, np.full(30, 2.0)), RANGE)
