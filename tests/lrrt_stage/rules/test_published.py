from math import log10

import numpy as np
import pytest

from lrrt_stage import (
    RULES,
    LRCurve,
    LRRange,
    LRRTError,
    NoSuggestion,
    Reading,
    Smoothing,
    suggest,
    suggest_all,
)
from lrrt_stage import rule as register

RAW = Smoothing(beta=0.0)  # rules then read the very numbers below


def curve(loss, first=-7.0, step=0.25, **more):
    """A curve on an exponential ramp with ``step`` decades an iteration."""
    return LRCurve(10 ** (first + step * np.arange(len(loss))), loss, **more)


# 36 points, a quarter of a decade each, from 1e-7 on: flat to index 9, then down by 0.05 a step to
# index 15, steeper (0.1) to index 17, flatter (0.02) to the minimum at index 25 (lr = 10^-0.75),
# then up.
LOSS = np.concatenate(
    [
        np.full(10, 2.0),
        2.0 - 0.05 * np.arange(1, 7),
        1.7 - 0.1 * np.arange(1, 3),
        1.5 - 0.02 * np.arange(1, 9),
        1.34 + 0.3 * np.arange(1, 11),
    ]
)
MINIMUM = 25


def at(index):
    return 10 ** (-7 + 0.25 * index)


def test_article_takes_a_tenth_of_the_minimum_and_the_steepest_descent():
    # argmin/10 is exactly four points below the minimum. The slope is steepest where both
    # neighbours lie on the steep part: index 16 alone (central differences).
    found = suggest(curve(LOSS), "article", RAW)
    assert found.max == pytest.approx(at(MINIMUM - 4))
    assert found.min == pytest.approx(at(16))
    assert found.decades == pytest.approx(1.25)


def test_article_takes_the_nearest_tested_lr():
    # Steps of 0.3 decade: the grid LR nearest (in LR, not in its logarithm) to lr[25]/10 is the
    # one 3 steps (0.9 decade) below, 0.126, since the one 4 steps below is 0.063 of lr[25].
    found = suggest(curve(LOSS, step=0.3), "article", RAW)
    assert found.max == pytest.approx(10 ** (-7 + 0.3 * 22))


def test_article_falls_back_to_a_tenth_when_the_steepest_is_too_close():
    # A cliff just before the minimum: the steepest point is above max/10.
    loss = np.concatenate([np.full(24, 2.0), [1.9, 1.0], 1.0 + np.arange(1, 11)])
    found = suggest(curve(loss), "article", RAW)
    assert found.max == pytest.approx(at(25 - 4))
    assert found.min == pytest.approx(found.max / 10)


def test_article_looks_only_at_the_last_uninterrupted_descent():
    # An early cliff, steeper than all that follows, is cut off by a rise.
    loss = LOSS.copy()
    loss[:7] = 4.0
    loss[10] = 2.01
    found = suggest(curve(loss), "article", RAW)
    assert found.min == pytest.approx(at(16))


def test_article_leaves_out_the_first_five_points_and_the_last():
    loss = LOSS.copy()
    loss[4], loss[-1] = 0.0, 0.0
    assert suggest(curve(loss), "article", RAW) == suggest(curve(LOSS), "article", RAW)


def test_minimum_is_a_tenth_of_the_lowest():
    assert suggest(curve(LOSS), "minimum", RAW) == LRRange.decade_below(at(MINIMUM) / 10)


def test_steepest_is_the_steepest_fall_per_decade():
    assert suggest(curve(LOSS), "steepest", RAW).max == pytest.approx(at(16))


def test_steepest_on_a_linear_ramp_divides_by_decades_not_by_steps():
    # The same fall at every step is steepest per decade where steps span the fewest decades: at
    # the end of the descent.
    lr = np.linspace(0.1, 3.0, 30)
    loss = np.concatenate([2.0 - 0.05 * np.arange(20), 1.05 + np.arange(1, 11)])
    found = suggest(LRCurve(lr, loss), "steepest", RAW)
    slope = [(loss[i + 1] - loss[i]) / log10(lr[i + 1] / lr[i]) for i in range(5, 18)]
    assert int(np.argmin(slope)) == len(slope) - 1
    assert lr[16] <= found.max <= lr[18]


def test_valley_is_half_way_along_the_longest_decrease():
    # 36 points: the window is [3:-5], indices 3 … 30. The longest strict decrease has one of the
    # 2.0s and the 16 values to the minimum: L = 17, ending at window index 22. fastai's formula:
    # 22 - 17 + int(17/3) + int(17/6) = 5 + 5 + 2 = 12, which is index 15 of the curve.
    assert suggest(curve(LOSS), "valley", RAW).max == pytest.approx(at(15))


def test_valley_agrees_with_the_quadratic_definition_on_noisy_curves():
    rng = np.random.default_rng(0)
    for _ in range(20):
        loss = LOSS + rng.normal(0, 0.02, len(LOSS))
        window = loss[3:-5]
        length = np.ones(len(window), dtype=int)
        for i in range(len(window)):
            length[i] += max((length[j] for j in range(i) if window[i] < window[j]), default=0)
        end, longest = int(length.argmax()), int(length.max())
        index = end - longest + int(longest / 3) + int(longest / 3 / 2)
        assert suggest(curve(loss), "valley", RAW).max == pytest.approx(at(3 + index))


def test_slide_stops_where_the_slopes_at_both_ends_agree():
    # Window [4:-5] of 40 points. Slopes: 0 up to index 24, then -0.1 a step. The interval [low,
    # low + 15] first has equal slopes at both ends when its upper end reaches index 23 (a central
    # difference at 24 is already -0.05), so the last unequal one is low = 24 - 15 = 9.
    loss = np.concatenate([np.full(25, 5.0), 5.0 - 0.1 * np.arange(1, 16)])
    # Within the window the descent is longer than the interval would hide: it ends at index 34.
    assert suggest(curve(loss), "slide", RAW).max == pytest.approx(at(9))


def test_the_rules_names_are_published():
    assert set(RULES) >= {"article", "steepest", "minimum", "valley", "slide"}


def test_too_few_points_has_no_answer():
    with pytest.raises(NoSuggestion, match="too few points: 9 finite losses"):
        suggest(curve(LOSS[:9]), "article")
    with pytest.raises(NoSuggestion, match="too few points"):
        suggest(curve([*LOSS[:9], np.nan]), "valley")
    with pytest.raises(NoSuggestion, match="slide needs more than 15 points"):
        suggest(curve(LOSS[8:26]), "slide", RAW)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_loss_that_never_fell_has_no_answer(rule):
    noise = np.random.default_rng(1).normal(2.3, 0.1, 100)
    for flat in (np.full(100, 2.3), np.linspace(2.3, 9, 100), noise):
        with pytest.raises(NoSuggestion, match="never fell.*raise lr_end"):
            suggest(curve(flat, step=0.05), rule)


@pytest.mark.parametrize("rule", ["article", "minimum"])
def test_a_loss_still_falling_at_the_last_lr_has_no_answer(rule):
    with pytest.raises(NoSuggestion, match="still falling at the last LR 0.177828"):
        suggest(curve(LOSS[: MINIMUM + 1]), rule, RAW)


def test_a_loss_that_falls_until_it_explodes_has_an_answer():
    exploded = curve([*LOSS[: MINIMUM + 1], np.inf], stop="non-finite")
    assert isinstance(suggest(exploded, "article", RAW), LRRange)


def test_every_rule_has_its_own_answer():
    answers = suggest_all(curve(LOSS[: MINIMUM + 1]), RAW)
    assert list(answers) == list(RULES)
    assert isinstance(answers["article"], NoSuggestion)
    assert isinstance(answers["valley"], LRRange)


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(LRRTError, match="'valley'"):
        suggest(curve(LOSS), "valey")


def test_a_rule_is_added_without_touching_anything_else(monkeypatch):
    monkeypatch.setitem(RULES, "fixed", RULES["robust"])  # which is undone at the end

    @register("fixed")
    def fixed(curve, smoothing):
        """Always from :data:`A` to
        `B`.

        More of it.
        """
        return LRRange(0.1, 0.2)

    assert suggest(curve(LOSS), "fixed") == fixed(None, None) == LRRange(0.1, 0.2)
    added = RULES["fixed"]
    assert added(None, None) == LRRange(0.1, 0.2)
    assert added.explanation == "Always from A to B."
    name, loss = added.reads(curve(LOSS), RAW)
    assert (name, loss.tolist()) == ("smoothed training loss", RAW(LOSS).tolist())


def test_every_rule_is_asked_once_for_a_reading(monkeypatch):
    monkeypatch.setitem(RULES, "counted", RULES["robust"])
    asked = []

    @register("counted")
    def counted(curve, smoothing):
        asked.append(curve)
        return LRRange(0.1, 0.2)

    whole = curve(LOSS)
    Reading.from_curve(whole, "counted")
    assert sum(each is whole for each in asked) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (1, 1), (1, np.inf), (-1, 1)])
def test_a_range_is_positive_and_ordered(low, high):
    with pytest.raises(LRRTError, match="0 < min < max"):
        LRRange(low, high)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_curve_that_ended_at_a_loss_that_is_not_finite_says_so(value):
    noise = 2.0 + 0.01 * np.sin(np.arange(30) * 2.0)
    with pytest.raises(NoSuggestion, match=rf"never fell.*{value} at the LR 3\.16") as error:
        suggest(curve([*noise, float(value)], stop="non-finite"))
    assert "raise lr_end" not in str(error.value)
    assert "lower lr_start" in str(error.value)
    with pytest.raises(NoSuggestion, match=rf"4 finite losses.*{value} at the LR 1e-06"):
        suggest(curve([2.0, 1.9, 1.8, 1.7, float(value)], stop="non-finite"))


@pytest.mark.parametrize("average", ["corrected", "from-first"])
@pytest.mark.parametrize("shift", [1.34, 2.0, 500.0, -500.0])
def test_a_constant_added_to_the_loss_moves_no_suggestion(average, shift):
    noisy = LOSS + 0.01 * np.random.default_rng(0).normal(size=len(LOSS))
    smoothing = Smoothing(average, 0.5)
    for name in RULES:
        plain = suggest(curve(noisy), name, smoothing)
        assert suggest(curve(noisy - shift), name, smoothing).max == pytest.approx(plain.max)
    # The biased average starts near zero at any loss: it may lose the descent, and no more.
    assert [*suggest_all(curve(noisy - shift), Smoothing("biased", 0.5))] == [*RULES]
