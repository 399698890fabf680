from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
)

from lrrt_stage import LRRange
from pipeline.training.schedules import SCHEDULES, build_schedule
from tests.strategies import ranges

RANGE = LRRange(0.02, 0.5)


def groups(*rates: float) -> Optimizer:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def rates(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """The learning rate of every step, one list per parameter group."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [list(column) for column in zip(*seen, strict=True)]


def scheduled(name: str, steps: int, *found: float) -> list[list[float]]:
    optimizer = groups(*found)
    return rates(optimizer, build_schedule(name, optimizer, RANGE, steps), steps)


def peaks(sequence: list[float]) -> int:
    rising = [later > earlier for earlier, later in pairwise(sequence)]
    return sum(up and not then for up, then in pairwise(rising))


@pytest.mark.parametrize("steps", [80, 113])
def test_one_cycle_is_torchs(steps):
    optimizer = groups(1.0, 1.0)
    by_hand = OneCycleLR(
        optimizer,
        max_lr=[0.05, 0.5],
        total_steps=steps,
        pct_start=0.3,
        anneal_strategy="cos",
        div_factor=25.0,
        final_div_factor=1e4,
        cycle_momentum=False,
    )

    for ours, theirs in zip(
        scheduled("one-cycle", steps, 1e-3, 1e-2), rates(optimizer, by_hand, steps), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_triangular_is_torchs():
    optimizer = groups(1.0, 1.0)
    by_hand = CyclicLR(
        optimizer,
        base_lr=[0.002, 0.02],
        max_lr=[0.05, 0.5],
        step_size_up=10,
        mode="triangular",
        cycle_momentum=False,
    )

    for ours, theirs in zip(
        scheduled("triangular", 80, 1e-3, 1e-2), rates(optimizer, by_hand, 80), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_warm_restarts_are_torchs():
    # torch has one minimum for all groups: a scheduler for each.
    expected = []
    for low, high in [(0.002, 0.05), (0.02, 0.5)]:
        optimizer = groups(high)
        by_hand = CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2, eta_min=low)
        expected += rates(optimizer, by_hand, 70)

    for ours, theirs in zip(scheduled("warm-restarts", 70, 1e-3, 1e-2), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_warm_restarts_of_one_group_are_torchs():
    optimizer = groups(0.5)
    by_hand = CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2, eta_min=0.02)

    (ours,) = scheduled("warm-restarts", 70, 1e-2)
    (theirs,) = rates(optimizer, by_hand, 70)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_constant_is_the_maximum():
    small, large = scheduled("constant", 30, 1e-3, 1e-2)

    assert large == [0.5] * 30
    assert small == pytest.approx([0.05] * 30, rel=1e-12)


def test_one_cycle_starts_at_the_minimum_and_peaks_at_the_maximum():
    (lr,) = scheduled("one-cycle", 101, 1e-3)

    assert lr[0] == pytest.approx(0.02, rel=1e-12)
    assert max(lr) == pytest.approx(0.5, rel=1e-3)  # the peak lies between two steps
    assert 28 <= lr.index(max(lr)) <= 31
    assert peaks(lr) == 1
    assert lr[-1] == pytest.approx(0.02 / 1e4, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [7, 22, 80, 131])
def test_the_leading_group_stays_inside_the_range(name, steps):
    lr = scheduled(name, steps, 1e-3, 1e-2)[1]
    # One-cycle ends far below, by design.
    inside = lr[: lr.index(max(lr)) + 1] if name == "one-cycle" else lr

    assert len(lr) == steps
    assert max(lr) <= 0.5 * (1 + 1e-12)
    assert min(inside) >= 0.02 * (1 - 1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_keep_their_ratio_at_every_step(name):
    small, large = scheduled(name, 60, 3e-3, 3e-2)

    assert [10 * lr for lr in small] == pytest.approx(large, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_momentum_stays_what_the_range_test_used(name):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.7)
    schedule = build_schedule(name, optimizer, RANGE, 20)
    for _ in range(20):
        assert optimizer.param_groups[0]["momentum"] == 0.7
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_without_a_rate_get_equal_ones(name):
    one, other = scheduled(name, 20, 0.0, 0.0)

    assert one == other
    assert max(one) > 0.02


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_optimizer_that_was_scheduled_before_takes_a_new_schedule(name):
    optimizer = groups(0.3)
    rates(optimizer, build_schedule("one-cycle", optimizer, LRRange(1e-4, 1e-3), 9), 9)

    (again,) = rates(optimizer, build_schedule(name, optimizer, RANGE, 40), 40)
    (fresh,) = scheduled(name, 40, 0.3)
    assert again == pytest.approx(fresh, rel=1e-12)


@pytest.mark.parametrize("steps", [70, 100])
def test_warm_restarts_have_three_cycles_each_twice_as_long(steps):
    (lr,) = scheduled("warm-restarts", steps, 1.0)
    starts = [step for step, value in enumerate(lr) if value == pytest.approx(0.5, rel=1e-9)]

    first = -(-steps // 7)
    assert starts == [0, first, 3 * first]
    assert lr[-1] < 0.04


@pytest.mark.parametrize("steps", [80, 22, 110])
def test_triangular_has_four_triangles(steps):
    (lr,) = scheduled("triangular", steps, 1.0)

    assert peaks(lr) == 4
    assert lr[0] == pytest.approx(0.02)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_can_be_scheduled(name, steps):
    (lr,) = scheduled(name, steps, 1.0)

    assert len(lr) == steps
    assert all(0 < value <= 0.5 * (1 + 1e-12) for value in lr)


def test_an_unknown_schedule_brings_the_nearest_name(complains):
    with complains("schedule", "'onecycle'", "did you mean 'one-cycle'?"):
        build_schedule("onecycle", groups(1.0), RANGE, 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ReduceLROnPlateau", "needs a metric at every step"),
        ("SequentialLR", "is made of other schedules"),
        ("LRScheduler", "is the base of others"),
        ("LambdaLR", "is made of functions"),
    ],
)
def test_a_schedule_of_torch_that_a_name_does_not_make_is_refused(complains, name, reason):
    with complains(f"schedule '{name}' {reason}", "load_handoff"):
        build_schedule(name, groups(1.0), RANGE, 10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_first_group_at_rate_zero_stays_there_and_the_other_goes_its_way(name):
    still, moving = scheduled(name, 40, 0.0, 1e-2)

    assert still == [0.0] * 40
    assert moving == pytest.approx(scheduled(name, 40, 1e-2)[0], rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(lr_range=ranges(), steps=st.integers(1, 80), ratio=st.floats(0, 1))
def test_the_rates_of_a_schedule_stay_inside_the_range(name, lr_range, steps, ratio):
    optimizer = groups(1.0, ratio)
    scheduler = build_schedule(name, optimizer, lr_range, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        first, second = rates(optimizer, scheduler, steps)
    # The last part of one-cycle falls below the minimum.
    lowest = 0 if name == "one-cycle" else lr_range.min
    rounding = 1e-12 * lr_range.max
    assert min(first) >= lowest - rounding
    assert max(first) <= lr_range.max + rounding
    assert second == pytest.approx([ratio * rate for rate in first], abs=rounding)
