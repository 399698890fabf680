"""The rule robust, by hand-worked numbers: ten iterations per decade, from 1e-7."""

import numpy as np
import pytest

from lrrt_stage import (
    RULES,
    LRCurve,
    LRRange,
    NoSuggestion,
    Smoothing,
    UnimodalFit,
    Verdict,
    confidence,
    suggest,
)
from lrrt_stage.rules.robust import SIGNIFICANCE, unimodal_regression


def at(iteration):
    return 10 ** (-7 + iteration / 10)


def curve(loss, **more):
    return LRCurve(10 ** (-7 + np.arange(len(loss)) / 10), loss, **more)


FALL = [4.0] * 20 + [3.0, 2.0, 1.0]  # the floor is iteration 22
RISE = [2.0, 4.0, 9.0, 99.0]
VALLEY = [*FALL, *RISE]


def test_the_rise_is_averaged_over_its_heights():
    # By 1 between iterations 22 and 23, by 2 between 23 and 24: (22.5 + 2 * 23.5) / 3. What is
    # above the start, 4, counts as the start, so the explosion adds nothing.
    valley = UnimodalFit.from_curve(curve(VALLEY), "loss")
    assert valley.floor == 22
    assert valley.rise == pytest.approx(at((22.5 + 2 * 23.5) / 3))
    assert suggest(curve(VALLEY)) == LRRange.decade_below(valley.rise / 5)


def test_a_flat_floor_moves_nothing():
    wide = [*FALL, 1.0, 1.0, 1.0, *RISE]
    assert suggest(curve(wide)).max == pytest.approx(suggest(curve(VALLEY)).max * 10**0.3)


def test_how_high_the_explosion_is_does_not_matter():
    for end in ([2.0, 4.0], [2.0, 4.0, 1e30], [2.0, 4.0, 4.0, 4.0, 5.0]):
        assert suggest(curve([*FALL, *end])).max == pytest.approx(suggest(curve(VALLEY)).max)


def test_a_loss_that_is_not_finite_counts_as_the_start():
    # From 1 at iteration 22 to the start at iteration 23.
    for end in (np.inf, np.nan):
        found = suggest(curve([*FALL, end], stop="non-finite"))
        assert found.max == pytest.approx(at(22.5) / 5)


def test_the_probe_is_read_where_there_is_one():
    noise = np.random.default_rng(0).normal(4.0, 1.0, len(VALLEY))
    probed = curve(noise, probe_loss=VALLEY)
    assert suggest(probed) == suggest(curve(VALLEY))
    # Its start is the loss at the initial weights, exactly.
    assert UnimodalFit.from_curve(probed, "probe_loss").start == 4.0


def test_smoothing_does_not_matter():
    assert suggest(curve(VALLEY), "robust", Smoothing("biased", 0.9)) == suggest(curve(VALLEY))


def test_of_noise_few_curves_have_an_answer():
    generator, verdicts = np.random.default_rng(0), []
    explosion = np.exp(np.arange(20) / 4)
    for _ in range(500):
        losses = generator.normal(2.3, 0.1, 100)
        losses[80:] += explosion
        try:
            suggest(curve(losses))
        except NoSuggestion as reason:
            verdicts.append(reason.verdict)
    # Although the floor is where the noise is lowest: no more than the level of the t-test allows.
    assert 1 - len(verdicts) / 500 < SIGNIFICANCE + 0.025
    assert set(verdicts) == {Verdict.NO_DESCENT}


def test_one_outlier_neither_makes_a_descent_nor_hides_one():
    flat = np.random.default_rng(0).normal(2.3, 0.1, 80)
    flat[60] = -5.0
    with pytest.raises(NoSuggestion, match="never fell"):
        suggest(curve(flat))
    for spike in (1e4, np.inf):
        probe = np.array(VALLEY)
        probe[21] = spike
        assert suggest(curve(VALLEY, probe_loss=probe)).max > 0


def test_a_probe_that_is_not_finite_at_the_start_has_no_answer():
    with pytest.raises(NoSuggestion, match="never fell"):
        suggest(curve(VALLEY, probe_loss=[np.inf, *VALLEY[1:]]))


def test_a_constant_loss_never_fell():
    for value in (-0.3, 0.1, 0.0):
        with pytest.raises(NoSuggestion, match="never fell"):
            suggest(curve(np.full(50, value)))


def test_a_test_that_diverged_before_the_probe_rose_ends_the_range():
    cut = curve(FALL, probe_loss=FALL, stop="diverged")
    assert suggest(cut).max == pytest.approx(at(22) / 5)
    with pytest.raises(NoSuggestion, match="interrupted"):
        suggest(curve(FALL, stop="interrupted"))


def test_a_ramp_that_starts_too_high_has_no_answer():
    short = LRCurve(np.geomspace(0.1, 0.4, 12), [4, 3, 2, 1, 0.5, 0.2, 0.1, 0.1, 2, 3, 4, 9])
    with pytest.raises(NoSuggestion, match="lower lr_start"):
        suggest(short)


def test_still_falling_at_the_end_has_no_answer_and_says_so():
    with pytest.raises(NoSuggestion, match="still falling at the last LR .*: raise lr_end") as no:
        suggest(curve(FALL))
    assert no.value.verdict is Verdict.STILL_FALLING
    assert confidence(curve(FALL)).verdict is Verdict.STILL_FALLING


def test_barely_risen_at_the_end_is_answered_and_said():
    risen = curve([*FALL, 1.0, 2.0])
    assert UnimodalFit.from_curve(risen, "loss").recovered == pytest.approx(1 / 3)
    assert confidence(risen).verdict is Verdict.STILL_FALLING
    assert confidence(curve([*FALL, 1.0, 2.0], stop="diverged")).verdict is Verdict.CLEAR


def test_without_noise_the_interval_is_a_point_and_the_verdict_clear():
    found = confidence(curve(VALLEY))
    assert found.low == pytest.approx(found.high) == pytest.approx(suggest(curve(VALLEY)).max)
    assert found.clear
    assert found.decades == pytest.approx(0)


def test_noise_widens_the_interval_and_the_same_seed_gives_the_same():
    def noisy(scale):
        x = np.arange(100)
        noise = np.random.default_rng(3).normal(0, scale, 100)
        return curve(4 - 3 / (1 + np.exp((50 - x) / 3)) + np.exp((x - 80) / 4) + noise)

    found = [confidence(noisy(scale)) for scale in (0.01, 0.1, 0.6)]
    assert found[0].decades < found[1].decades < found[2].decades
    assert found[0].clear
    assert confidence(noisy(0.1)) == found[1]
    assert confidence(noisy(0.1), seed=1) != found[1]


def test_a_probe_and_training_losses_that_disagree_widen_the_interval():
    early, late = [*FALL, *RISE, *[9.0] * 10], [*FALL, *[1.0] * 10, *RISE]
    agree = confidence(curve(late, probe_loss=late))
    disagree = confidence(curve(early, probe_loss=late))
    assert agree.clear
    assert disagree.verdict is Verdict.NOISY
    assert disagree.decades == pytest.approx(1, abs=0.1)


def test_every_rule_has_an_interval():
    found = confidence(curve([*VALLEY, 99.0]), "steepest")
    assert found.low <= suggest(curve([*VALLEY, 99.0]), "steepest").max <= found.high


# A single low loss is no descent.
DIP = np.array([4.1, 4.0] * 12 + [4.1, 3.5, 4.1, 4.0] + [9.0] * 6)


def test_a_single_low_loss_is_no_descent():
    with pytest.raises(NoSuggestion, match="never fell: 4.1 to 3.5"):
        suggest(curve(DIP, probe_loss=DIP))


def test_where_the_probe_does_not_fall_the_later_rise_counts():
    # Falls to iteration 8, rises by a half at 9 and by the other at 25.
    early = curve([4.2] * 8 + [4.0] + [4.1] * 16 + [9.0] * 9, probe_loss=DIP)
    assert UnimodalFit.from_curve(early, "loss").rise == pytest.approx(at((8.5 + 24.5) / 2))
    assert suggest(early).max == pytest.approx(UnimodalFit.from_curve(early, "probe_loss").rise / 5)
    assert suggest(early).max * 5 > at(25)
    # One loss that is lower by a rounding is no floor.
    never = np.array([4.0, 4.0 - 1e-6, *[4.0 + 0.01 * i for i in range(len(VALLEY) - 2)]])
    assert suggest(curve(VALLEY, probe_loss=never)) == suggest(curve(VALLEY))


def test_training_losses_that_never_rise_are_still_falling_whatever_a_flat_probe_does():
    flat = np.array([4.0, *[3.99, 4.01] * 14])
    falling = [*FALL, *np.linspace(1.0, 0.5, 6)]
    with pytest.raises(NoSuggestion, match="still falling"):
        suggest(curve(falling, probe_loss=flat))


def test_a_probe_that_did_not_rise_again_does_not_end_the_descent():
    """A network that is dead says the same of all examples, which may be below its start."""
    dead = np.array([4.1, 4.0] * 13 + [3.5])
    assert suggest(curve(VALLEY, probe_loss=dead)) == suggest(curve(VALLEY))


class TestBaseline:
    """What an answer gains that is alike for all examples is no gain."""

    def test_a_network_that_is_dead_below_its_start_does_not_look_as_if_it_learned(self):
        # It falls from 6 to 4, the loss of the best answer that is alike for all; learns something
        # at iterations 20 to 22, and is dead from 24 on, at a loss far below its start.
        baseline = [6.0, 5.0, *[4.0] * 30]
        probe = [*baseline[:20], 3.0, 2.0, 1.0, 2.0, *[4.0] * 8]
        plain = UnimodalFit.from_curve(curve(probe, probe_loss=probe, stop="diverged"))
        told = UnimodalFit.from_curve(
            curve(probe, probe_loss=probe, probe_baseline=baseline, stop="diverged")
        )
        # By 1 between 22 and 23, by 2 between 23 and 24.
        assert told.rise == pytest.approx(at((22.5 + 2 * 23.5) / 3))
        # Without a baseline, the same; but to a higher start it has not risen yet.
        assert told.start == 6.0
        assert told.recovered == 1.0
        assert plain.recovered == pytest.approx(3 / 5)

    def test_a_trained_network_is_ruined_where_it_knows_nothing_and_not_at_its_start(self):
        # At its start it knows half of all, and at 3 it still knows something.
        probe = [2.0] * 20 + [1.5, 1.0, 3.0, 4.0, 4.0]
        fit = UnimodalFit.from_curve(
            curve(probe, probe_loss=probe, probe_baseline=[4.0] * 25, stop="diverged")
        )
        assert fit.start == 4.0
        assert fit.clipped[0] == 2.0
        # By 2 between 21 and 22, by 1 between 22 and 23.
        assert fit.rise == pytest.approx(at((2 * 21.5 + 22.5) / 3))

    def test_an_answer_that_is_worse_than_one_that_is_alike_for_all_counts_as_that(self):
        # The new head of a trained network: its loss is far above that of its mean output.
        probe = [6.0] * 18 + [5.0, 4.5, 3.0, 2.0, 1.0, 2.0, *[4.0] * 8]
        fit = UnimodalFit.from_curve(
            curve(probe, probe_loss=probe, probe_baseline=[4.0] * 32, stop="diverged")
        )
        assert fit.start == fit.clipped[0] == 4.0

    def test_where_nothing_else_is_learned_what_is_alike_for_all_counts(self):
        baseline = [*FALL, *[1.0] * 4]
        probed = curve(VALLEY, probe_loss=VALLEY, probe_baseline=baseline)
        assert suggest(probed) == suggest(curve(VALLEY))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_baseline_that_is_not_finite_changes_nothing(self, bad):
        baseline = [4.0] * 24 + [bad] * 3
        probed = curve(VALLEY, probe_loss=VALLEY, probe_baseline=baseline)
        assert suggest(probed) == suggest(curve(VALLEY))

    def test_a_difference_within_the_rounding_of_the_losses_is_no_fall(self):
        # Nothing is learned: the losses change in the last bits of float32 only.
        loss = 2.3 * (1 + 1e-7 * np.tile([1, -1], 50))
        baseline = 2.31 * (1 + 1e-7 * np.r_[np.zeros(50), -3 * np.ones(25), np.zeros(25)])
        flat = LRCurve(np.geomspace(1e-7, 100, 100), loss, probe_loss=loss, probe_baseline=baseline)
        with pytest.raises(NoSuggestion, match="never fell"):
            suggest(flat)

    def test_a_loss_that_stays_above_its_baseline_has_not_fallen(self):
        # Outputs that only add variance get smaller: no example is told from another.
        probe = [5.0] * 20 + [4.8, 4.6, 4.4, 4.8, *[9.0] * 8]
        probed = curve(VALLEY + [99.0] * 5, probe_loss=probe, probe_baseline=[4.0] * 32)
        fit = UnimodalFit.from_curve(probed)
        assert not fit.unspecific.any()
        assert fit.start == 5.0  # read without the baseline
        assert fit.rise < at(24)

    def test_what_a_new_head_tells_apart_by_luck_hides_no_fall(self):
        # The scale of the head shrinks, and its luck of 0.5 with it; then it learns as much.
        shrinking = np.r_[np.full(40, 4.0), np.geomspace(4.0, 1.0, 20), [1.0] * 30, [9.0] * 10]
        learned = np.r_[np.zeros(60), np.linspace(0.1, 0.4, 10), np.zeros(30)]
        probe = shrinking - 0.5 * shrinking / 4.0 - learned
        lr = np.geomspace(1e-7, 100, 100)
        made = LRCurve(lr, probe, probe_loss=probe, probe_baseline=shrinking)
        fit = UnimodalFit.from_curve(made)
        assert lr[65] < fit.rise < lr[75]
        # The fit less what is unspecific is on the scale of the losses.
        assert (fit.fit - fit.unspecific)[:40] == pytest.approx(probe[:40])

    @pytest.mark.parametrize(
        ("baseline", "luck"),
        [
            # An offset is learned, and nothing else; a head only shrinks; losses are negative.
            (np.r_[np.full(40, 10.0), np.linspace(10, 1, 20), np.full(40, 1.0)], np.full(100, 0.5)),
            (np.r_[np.full(40, 4.0), np.linspace(4, 1, 60)], np.linspace(0.5, 0.1, 100)),
            (np.r_[np.ones(50), np.linspace(1, 0.2, 20), np.full(30, 0.2)], np.full(100, 5.0)),
        ],
    )
    def test_luck_that_is_only_kept_or_lost_is_no_fall(self, baseline, luck):
        probed = curve(np.full(100, 4.0), probe_loss=baseline - luck, probe_baseline=baseline)
        assert not UnimodalFit.from_curve(probed).unspecific.any()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("place", [0, 10])
    def test_a_baseline_that_is_not_finite_is_read(self, bad, place):
        baseline = np.full(27, 5.0)
        baseline[place] = bad
        probed = curve(VALLEY, probe_loss=np.full(27, 4.5), probe_baseline=baseline)
        assert not UnimodalFit.from_curve(probed).fell

    def test_a_loss_that_starts_at_zero_is_read(self):
        falling = np.array([0.0] * 20 + [-1.0, -2.0, -3.0, -2.0, *[0.0] * 8])
        probed = curve(falling, probe_loss=falling, probe_baseline=np.zeros(32), stop="diverged")
        # By 1 between 22 and 23, by 2 between 23 and 24.
        assert UnimodalFit.from_curve(probed).rise == pytest.approx(at((22.5 + 2 * 23.5) / 3))

    def test_a_fall_near_the_rounding_of_large_losses_is_none(self):
        quantum = 16 * 2.0**-23 * 400
        probe = 400 - np.array([0.0] * 20 + [quantum] * 3 + [0.0] * 4)
        probed = curve(VALLEY, probe_loss=probe, probe_baseline=np.full(27, 400.0))
        assert not UnimodalFit._fitted(
            probed, np.arange(27), "probe_loss", np.zeros(27), 400.0
        ).fell

    def test_a_trained_network_that_is_worse_than_before_has_risen(self):
        # Its baseline is far above what it loses at the end of a completed ramp.
        probe = [0.10] * 20 + [0.09, 0.08, 0.07, 0.15, 0.36]
        probed = curve(probe, probe_loss=probe, probe_baseline=[2.3] * 25)
        assert UnimodalFit.from_curve(probed).recovered == 1.0
        assert confidence(probed).verdict is Verdict.CLEAR

    def test_the_interval_is_that_of_the_curve_without_what_is_alike_for_all(self):
        rng = np.random.default_rng(0)
        noisy = np.array(VALLEY) + rng.normal(0, 0.05, len(VALLEY))
        shift = np.linspace(2.0, 0.0, len(VALLEY))
        plain = curve(noisy, probe_loss=noisy, probe_baseline=np.full(len(VALLEY), noisy[0]))
        lower = curve(noisy, probe_loss=noisy + shift - 2, probe_baseline=noisy[0] - 2 + shift)
        assert confidence(plain).low == pytest.approx(confidence(lower).low, rel=1e-9)


class TestEvaluatedNowAndThen:
    """A probe that was not evaluated at every iteration."""

    @staticmethod
    def sparse(losses, every: int, **more) -> LRCurve:
        missing = np.arange(len(losses)) % every > 0
        probe = np.where(missing, np.nan, losses)
        baseline = np.where(missing, np.nan, 4.0)
        return curve(losses, probe_loss=probe, probe_baseline=baseline, **more)

    def test_the_fit_is_that_of_the_evaluations_alone(self):
        found = UnimodalFit.from_curve(self.sparse(VALLEY, 3))
        alone = UnimodalFit.from_curve(curve(VALLEY, probe_loss=VALLEY)[::3])
        assert found.iterations.tolist() == [*range(0, len(VALLEY), 3)]
        assert found.fit.tolist() == alone.fit.tolist()
        assert found.rise == alone.rise

    def test_a_weak_descent_counts_however_often_it_is_evaluated(self):
        fallen = dict.fromkeys((1, 3, 5), 0)
        for seed in range(40):
            walk = 4 + np.cumsum(np.random.default_rng(seed).normal(-0.002, 0.02, 40))
            for every in fallen:
                probed = self.sparse([*[4.0] * 5, *walk, *[9.0] * 10], every)
                fallen[every] += UnimodalFit.from_curve(probed).fell
        assert min(fallen.values()) >= 38

    @pytest.mark.parametrize("every", [1, 2, 3])
    def test_a_single_low_evaluation_is_no_descent(self, every):
        losses = [4.01 if number % 4 < 2 else 3.99 for number in range(60)]
        losses[48] = 3.9
        assert not UnimodalFit.from_curve(self.sparse([*losses, *[9.0] * 10], every)).fell

    def test_it_begins_with_the_first_evaluation(self):
        losses = [*FALL, 1.0, 1.0, 2.0, 4.0, 9.0, 9.0]
        whole = self.sparse(losses, 2)
        late = curve(losses, probe_loss=[np.nan, *whole.probe_loss[1:]])
        fit = UnimodalFit.from_curve(late)
        assert (fit.iterations[0], fit.start) == (2, 4.0)
        assert suggest(late) == suggest(whole)

    def test_without_any_evaluation_the_training_losses_are_read(self):
        never = curve(VALLEY, probe_loss=np.full(len(VALLEY), np.nan))
        assert suggest(never) == suggest(curve(VALLEY))
        assert confidence(never).clear

    def test_the_interval_and_the_loss_that_is_read_have_a_value_at_every_iteration(self):
        probed = self.sparse(VALLEY, 3)
        assert confidence(probed).low <= suggest(probed).max <= confidence(probed).high
        name, read = RULES["robust"].reads(probed, Smoothing())
        assert name == "fit to the probe loss"
        assert np.isfinite(read).all()
        assert read.shape == probed.loss.shape

    def test_the_interval_says_that_the_rise_is_anywhere_between_two_evaluations(self):
        # It rises from 1 to the start between iterations 24 and 25, which are evaluated up to 28.
        steep = [*FALL, 1.0, 1.0, *[9.0] * 8]
        probed = self.sparse(steep, 4)
        assert suggest(probed).max == pytest.approx(at(26) / 5)
        found = confidence(probed)
        assert (found.low, found.high) == pytest.approx((at(24.5) / 5, at(27.5) / 5))
        assert suggest(curve(steep)).max == pytest.approx(found.low)

    def test_the_interval_holds_what_is_suggested_when_all_are_evaluated(self):
        inside = []
        for seed in range(30):
            generator, x = np.random.default_rng(seed), np.arange(100)
            rise, noise = generator.uniform(60, 90), generator.normal(0, 0.1, 100)
            loss = 4 - 3 / (1 + np.exp((50 - x) / 3)) + np.exp((x - rise) / 2) + noise
            dense = curve(loss, probe_loss=loss)
            found = confidence(self.sparse(loss, 5))
            inside.append(found.low <= suggest(dense).max <= found.high)
        assert np.mean(inside) >= 0.8

    def test_a_training_loss_that_explodes_between_two_evaluations_ends_the_fall(self):
        fall = [*FALL, 1.0, np.inf]
        probed = self.sparse(fall, 4, stop="non-finite")
        fit = UnimodalFit.from_curve(probed)
        assert fit.iterations[-1] == len(fall) - 1
        assert fit.rises
        assert probed.lr[fit.iterations[-2]] < fit.rise < probed.lr[-1]


def test_a_fall_without_noise_counts():
    assert suggest(curve([4.0] * 20 + [3.0] + [9.0] * 5)).max == pytest.approx(at(20.5) / 5)


def test_with_a_probe_that_only_rose_the_training_losses_decide():
    probe = [4.0 + 0.01 * i for i in range(len(VALLEY))]
    assert suggest(curve(VALLEY, probe_loss=probe)) == suggest(curve(VALLEY))
    with pytest.raises(NoSuggestion, match="never fell: 4 to"):
        suggest(curve(probe, probe_loss=probe))


def test_a_descent_that_only_one_of_the_losses_shows_is_uncertain():
    flat = np.random.default_rng(0).normal(4.0, 0.1, len(VALLEY))
    assert confidence(curve(flat, probe_loss=VALLEY)).verdict is Verdict.NOISY
    assert confidence(curve(VALLEY, probe_loss=flat + 0.3)).verdict is Verdict.NOISY
    assert confidence(curve(VALLEY, probe_loss=VALLEY)).verdict is Verdict.CLEAR


def fit(*values):
    return unimodal_regression(np.array(values, dtype=float)).tolist()


def test_a_valley_is_its_own_fit():
    assert fit(5, 3, 1, 2, 7) == [5, 3, 1, 2, 7]


def test_what_breaks_the_shape_is_averaged_away():
    assert fit(4, 2, 3, 0, 6) == [4, 2.5, 2.5, 0, 6]
    assert fit(4, 0, 6, 3, 9) == [4, 0, 4.5, 4.5, 9]


@pytest.mark.parametrize("values", [[3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0]])
def test_a_side_may_be_missing(values):
    assert fit(*values) == values


def test_no_valley_is_nearer():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.normal(size=12)
        error = np.square(unimodal_regression(values) - values).sum()
        for turn in range(13):
            for _ in range(20):
                falling = np.sort(generator.normal(size=turn))[::-1]
                rising = np.sort(generator.normal(size=12 - turn))
                assert error <= np.square(np.concatenate([falling, rising]) - values).sum()


def test_the_fit_falls_and_then_rises():
    values = unimodal_regression(np.random.default_rng(1).normal(size=200))
    signs = np.sign(np.diff(values))
    signs = signs[signs != 0]
    assert (np.diff(signs) >= 0).all()


@pytest.mark.parametrize("extreme", [-1e6, 1e6])
def test_an_extreme_batch_at_the_start_does_not_count(extreme):
    assert suggest(curve([4.0, extreme, *VALLEY[2:]])) == suggest(curve(VALLEY))
