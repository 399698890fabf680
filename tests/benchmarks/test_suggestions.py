import re
from functools import partial
from math import inf, nan

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import cross_entropy

from benchmarks.suggestions import data, peers, scores, without_test
from benchmarks.suggestions.guarded import guarded
from benchmarks.suggestions.models import mlp
from benchmarks.suggestions.narrowing import POLICIES, parted
from benchmarks.suggestions.problems import PROBLEMS, Problem, half
from benchmarks.suggestions.refinement import Search, searched
from benchmarks.suggestions.regrets import SEVERAL, agreements, our_suggestions
from benchmarks.suggestions.report import TRAINED, Sizes, Table, tables
from benchmarks.suggestions.trainings import initial_loss, lr_curve, recorded
from benchmarks.suggestions.work import Work
from lrrt_stage import RULES, LRRange, suggest

CANCER = PROBLEMS["cancer-mlp-adam-16"]


def frame(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


GRID = frame(
    "problem seed lr loss kept_loss",
    ("p", 0, 0.01, 0.6, 0.6), ("p", 0, 0.1, 0.2, 0.1), ("p", 0, 1.0, inf, 0.9),
    ("p", 1, 0.01, 0.5, 0.5), ("p", 1, 0.1, 0.7, 0.4), ("p", 1, 1.0, 2.0, 2.0),
)  # fmt: skip
REFERENCE = scores.references(GRID, frame("problem seed initial", ("p", 0, 1.0), ("p", 1, 1.5)))


def runs(*rows):
    made = frame("problem seed rule lr loss", *rows)
    return scores.scored(made.assign(kept_loss=made["loss"]), REFERENCE)


def test_the_reference_is_the_best_of_the_grid():
    found = REFERENCE[["best_lr", "best", "best_kept"]]
    assert found.to_numpy().tolist() == [[0.1, 0.2, 0.1], [0.01, 0.5, 0.4]]


@pytest.mark.parametrize(
    ("lr", "loss", "regret", "diverged", "missing"),
    [
        (0.1, 0.2, 0.0, False, False),
        (0.1, 0.6, 0.5, False, False),
        (0.1, 0.1, 0.0, False, False),  # better than all of the grid
        (0.1, 1.0, 1.0, False, False),
        (0.1, 1.2, 1.0, True, False),  # above the initial loss
        (0.1, inf, 1.0, True, False),
        (nan, nan, 1.0, False, True),
    ],
)
def test_regret_is_the_share_of_the_gain_that_is_lost(lr, loss, regret, diverged, missing):
    run = runs(("p", 0, "a", lr, loss)).iloc[0]
    assert run["regret"] == pytest.approx(regret)
    assert (run["diverged"], run["missing"]) == (diverged, missing)


def test_the_best_epoch_is_compared_with_the_best_epoch_of_all():
    kept = frame("problem seed rule lr loss kept_loss", ("p", 0, "a", 0.1, inf, 0.55))
    run = scores.scored(kept, REFERENCE).iloc[0]
    # From 1 to 0.1 can be gained.
    assert run["kept_regret"] == pytest.approx(0.45 / 0.9)
    assert run["regret"] == 1.0


def test_the_ranking_is_by_mean_regret():
    table = scores.ranking(
        runs(
            ("p", 0, "bad", nan, nan), ("p", 1, "bad", 1.0, inf),
            ("p", 0, "good", 0.01, 0.6), ("p", 1, "good", 0.1, 0.7),
        )
    )  # fmt: skip
    # Regrets of good: 0.4 / 0.8 and 0.2 / 1.0; it is a decade below and a decade above the best.
    assert table.columns.tolist() == [
        "rule", "median", "90th percentile", "mean regret", "±", "mean, best epoch",
        "90th, best epoch", "mean, fine-tuning", "diverged", "no suggestion",
        "abs log10(LR / best)",
    ]  # fmt: skip
    # The best epochs of the grid gain 0.9 and 1.1; good loses 0.5 and 0.3 of that.
    kept = (0.5 / 0.9 + 0.3 / 1.1) / 2, 0.9 * 0.5 / 0.9 + 0.1 * 0.3 / 1.1
    unused = ["±", "mean, fine-tuning"]
    good = table.drop(columns=unused).iloc[0].tolist()
    assert good == ["good", *map(pytest.approx, (0.35, 0.47, 0.35, *kept, 0, 0, 1))]
    bad = table.drop(columns=unused).iloc[1].tolist()
    assert bad == ["bad", 1, 1, 1, 1, 1, 1, 1, pytest.approx(2)]


def test_fine_tuning_has_a_mean_of_its_own():
    reference = pd.concat([REFERENCE, REFERENCE.assign(problem="tuned-p")])
    both = frame(
        "problem seed rule lr loss kept_loss trainings",
        ("p", 0, "a", 0.1, 1.0, 1.0, 1.0), ("tuned-p", 0, "a", 0.1, 0.6, 0.6, 2.0),
    )  # fmt: skip
    (row,) = scores.ranking(scores.scored(both, reference)).to_dict("records")
    assert row["mean, fine-tuning"] == pytest.approx(0.5)
    assert row["mean regret"] == pytest.approx(0.75)
    assert row["trainings"] == 1.5
    # Of two problems, which lose 1 and 0.5.
    assert row["±"] == pytest.approx(0.25)


def test_every_problem_has_a_column():
    reference = pd.concat([REFERENCE, REFERENCE.assign(problem="q")])
    both = frame(
        "problem seed rule lr loss",
        ("p", 0, "a", 0.1, 0.2), ("q", 0, "a", 0.1, 1.0),
        ("p", 0, "b", 0.1, 0.6), ("q", 0, "b", 0.1, 0.2),
    )  # fmt: skip
    both = both.assign(kept_loss=both["loss"])
    table = scores.per_problem(scores.scored(both, reference))
    assert table.columns.tolist() == ["rule", "p", "q"]
    assert table.to_numpy().tolist() == [["b", pytest.approx(0.5), 0], ["a", 0, 1]]


def test_verdicts_are_compared_with_clear():
    table = scores.per_verdict(
        frame(
            "verdict regret kept_regret",
            ("clear reading", 0.1, 0.0),
            ("clear reading", 0.3, 0.2),
            ("noisy", 0.5, 0.4),
            ("none", 0.9, 0.8),
        )
    ).set_index("verdict")
    assert table.loc["clear reading"].tolist() == pytest.approx([2, 0.2, 0.1, 1])
    assert table.loc["noisy"].tolist() == pytest.approx([1, 0.5, 0.4, 2.5])
    assert table.loc["all but clear"].tolist() == pytest.approx([2, 0.7, 0.6, 3.5])


def test_spread_is_in_decades_and_a_mean_over_problems():
    lrs = {"p": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "q": (0.1, 0.1, 0.1, nan, nan)}
    table = scores.spread(
        frame(
            "problem seed rule lr",
            *((name, i, "a", lr) for name in lrs for i, lr in enumerate(lrs[name])),
        )
    )
    assert table.to_numpy().tolist() == [["a", pytest.approx(1.0), 0.2]]


def test_a_shift_is_in_decades():
    before = frame("problem seed rule lr", ("p", 0, "a", 0.1), ("p", 1, "a", nan))
    after = frame("problem seed rule lr", ("p", 0, "a", 0.001), ("p", 1, "a", 0.1))
    assert scores.shifts(before, after)["shift"].tolist() == pytest.approx([-2.0, nan], nan_ok=True)


def test_three_tests_are_a_seeds_own_and_the_next_two():
    lrs = {("p", 0): 0.1, ("p", 1): 0.4, ("p", 2): 0.2, ("p", 3): None, ("q", 0): 0.3}
    found = {key: {"robust": lr and LRRange.decade_below(lr)} for key, lr in lrs.items()}
    agreed = {key: answer.max for key, answer in agreements(found).items()}
    # The median; where one has no suggestion, the lower of the other two.
    assert agreed == {("p", 0): 0.2, ("p", 1): 0.2, ("p", 2): 0.1, ("p", 3): 0.1, ("q", 0): 0.3}
    lost = {key: {"robust": None} for key in lrs}
    assert set(agreements(lost).values()) == {None}


def test_markdown_has_three_decimals():
    table = Table("t", "Title", frame("rule regret runs", ("a", 0.12345, 3), ("b", nan, 4)))
    assert table.to_markdown().splitlines() == [
        "### Title", "", "| rule | regret | runs |", "| --- | --- | --- |",
        "| a | 0.123 | 3 |", "| b | – | 4 |",
    ]  # fmt: skip


def test_the_problems_are_two_halves():
    assert set(half(False)) | set(half(True)) == set(PROBLEMS)
    assert not set(half(False)) & set(half(True))


def test_a_problem_starts_the_same_for_the_same_seed():
    first, again = ([value.clone() for value in next(iter(CANCER.batches(1)))] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], next(iter(CANCER.batches(2)))[0])
    assert initial_loss(CANCER, 1) == initial_loss(CANCER, 1) != initial_loss(CANCER, 2)
    assert [len(values) for values in CANCER.probe()] == [64, 64]


def test_training_helps_until_the_learning_rate_is_too_high():
    record = recorded(CANCER, 0, LRRange.decade_below(1e-2), 2)
    assert record.final_loss < initial_loss(CANCER, 0)
    assert (len(record.train), len(record.val)) == (2 * len(CANCER.batches(0)), 2)
    assert record.lowest_loss == min(record.val)
    sgd = Problem(data.diabetes, partial(mlp, 10, 1), torch.nn.functional.mse_loss, "sgd", 16, 1)
    assert recorded(sgd, 0, LRRange.decade_below(100.0), 1).final_loss == inf


def test_every_rule_of_ours_is_asked():
    curve = lr_curve(CANCER, 0)
    found = our_suggestions(curve)
    assert set(found) == {*RULES, "robust, no probe"}
    assert found["robust"] == suggest(curve)
    ends = parted({("p", 0): curve}).set_index("rule")
    assert ends.loc["rise / 3", "lr"] == pytest.approx(5 / 3 * suggest(curve).max)
    assert ends.loc["rise / 5", "lr"] == suggest(curve).max
    assert {rule for rule, _ in POLICIES.values()} <= {*found, SEVERAL}


class Interrupted(Exception):
    pass


class Models:
    """Builds models, counts them, and may be interrupted at one."""

    made, last = 0, inf

    @classmethod
    def make(cls):
        cls.made += 1
        if cls.made > cls.last:
            raise Interrupted
        return mlp(64, 10, width=8)


def test_a_command_that_was_interrupted_goes_on(tmp_path, monkeypatch, capsys):
    problems = {"tiny": Problem(data.digits, Models.make, cross_entropy, "adam", 256, 1)}
    sizes = Sizes(
        seeds=1,
        spread_seeds=2,
        more_iterations=150,
        grid=(1e-3, 1e-2, 1e-1),
        long_grid=(0.01,),
        searches=(Search(2, 0.5, "Hyperband"),),
    )
    monkeypatch.setattr(without_test, "NO_LR", ())

    def computed(folder):
        monkeypatch.setattr(Models, "made", 0)
        return {table.name: table.frame for table in tables(Work(folder), problems, [], sizes)}

    whole = computed(tmp_path / "whole")
    needed = Models.made
    (best,) = whole["references"]["best_lr"]
    rates = whole["runs"].set_index("rule")["lr"]
    beside = {side: rates.get(f"one step {side} the best") for side in ("below", "above")}
    assert beside == {
        "below": {1e-2: 1e-3, 1e-1: 1e-2}.get(best),
        "above": {1e-3: 1e-2, 1e-2: 1e-1}.get(best),
    }
    assert (
        len(rates)
        == len(whole["rules"])
        == len(TRAINED) + 2 + len([*filter(None, beside.values())])
    )
    assert whole["rules"]["mean regret"].between(0, 1).all()
    assert [*whole["refinement"]["rule"].sort_values()] == [
        "2 trials of 1/2, Hyperband",
        "3 initializations, whole range",
        "not watched",
        "whole range",
    ]
    assert set(whole["chain"]["rule"]) == set(whole["narrowing-long"]["rule"]) == set(POLICIES)

    monkeypatch.setattr(Models, "last", 9)
    with pytest.raises(Interrupted):
        computed(tmp_path / "parts")
    monkeypatch.setattr(Models, "last", inf)
    parts = computed(tmp_path / "parts")
    assert Models.made == needed - 9
    again = computed(tmp_path / "parts")
    assert Models.made == 0
    for name, table in whole.items():
        pd.testing.assert_frame_equal(parts[name], table)
        pd.testing.assert_frame_equal(again[name], table)
    assert "trainings: suggestions: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "rules"),
    [
        ("fastai", {f"fastai {rule}" for rule in ("minimum", "steep", "valley", "slide")}),
        ("torch_lr_finder", {"torch-lr-finder"}),
        ("lightning", {"Lightning"}),
        ("ignite", {"Ignite"}),
    ],
)
def test_a_peer_suggests_the_same_for_the_same_seed(package, rules):
    pytest.importorskip(package)
    found = peers.peer_suggestions(package, CANCER, 0)
    assert set(found) == rules
    assert all(lr is None or 1e-8 <= lr <= 10 for lr in found.values())
    assert found == peers.peer_suggestions(package, CANCER, 0)


def test_fastai_takes_another_ramp():
    pytest.importorskip("fastai")
    moved = peers.peer_suggestions("fastai", CANCER, 0, (("lr_start", 1e-5), ("iterations", 50)))
    assert moved != peers.peer_suggestions("fastai", CANCER, 0)


def test_the_command_says_what_to_install(tmp_path, monkeypatch):
    from benchmarks.suggestions import __main__ as command

    monkeypatch.setattr(command, "installed_peers", lambda: ["fastai", "ignite"])
    monkeypatch.setattr(command, "tables", lambda *_: [Table("t", "T", frame("rule", ("a",)))])
    folders = [f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"]
    ended = CliRunner().invoke(command.main, ["--half", "held-back", *folders])
    assert ended.exit_code == 0
    assert ended.stderr == (
        "left out: torch_lr_finder, lightning; pip install 'lrrt-stage[benchmarks]' for all\n"
    )
    assert "| a |" in ended.stdout
    assert (tmp_path / "out" / "held-back" / "t.csv").read_text() == "rule\na\n"
    assert not (tmp_path / "out" / "development").exists()


class TestGuarded:
    """The chain: attempts are read from trainings that were recorded to their end."""

    DIGITS = Problem(data.digits, partial(mlp, 64, 10, width=16), cross_entropy, "sgd", 128, 12)

    def run(self, tmp_path, peak, attempts=3):
        work, problems = Work(tmp_path), {"p": self.DIGITS}
        ranges = frame("problem seed rule lr_min lr", ("p", 0, "a", peak / 10, peak))
        measured = {("p", 0): lr_curve(self.DIGITS, 0)}
        return guarded(work, problems, measured, ranges, attempts).iloc[0]

    def test_a_training_that_is_not_lost_costs_one(self, tmp_path):
        run = self.run(tmp_path, 0.1)
        record = recorded(self.DIGITS, 0, LRRange(0.01, 0.1), 12)
        assert (run["lr"], run["attempts"], run["trainings"]) == (0.1, 1, 1.0)
        assert (run["loss"], run["kept_loss"]) == (record.final_loss, record.lowest_loss)

    def test_one_that_is_lost_costs_its_steps_and_the_next_one(self, tmp_path):
        run = self.run(tmp_path, 1.0)
        steps = 12 * (len(data.digits().train[0]) // 128)
        lost = int(re.search(r"at step (\d+)", run["reasons"])[1])
        assert run["attempts"] == 2
        assert run["trainings"] == pytest.approx(1 + lost / steps)
        assert run["lr"] == pytest.approx(1 / 3)
        assert run["loss"] == recorded(self.DIGITS, 0, LRRange(0.1 / 3, 1 / 3), 12).final_loss

    def test_if_all_are_lost_there_is_no_loss(self, tmp_path):
        run = self.run(tmp_path, 1e4)
        assert run["attempts"] == 3
        assert run["loss"] == run["kept_loss"] == inf

    @pytest.mark.parametrize("pruner", ["median", "Hyperband", "successive halving"])
    def test_a_search_takes_the_peak_of_its_best_trial(self, pruner):
        curve, lr_range = lr_curve(self.DIGITS, 0), LRRange(0.01, 0.1)
        search = Search(3, 1.0, pruner)
        (found,) = searched(self.DIGITS, 0, curve, lr_range, [search])
        steps = 12 * (len(data.digits().train[0]) // 128)
        assert lr_range.min <= found.lr <= lr_range.max
        assert steps < found.steps <= 3 * steps
        record = recorded(self.DIGITS, 0, LRRange(found.lr / 10, found.lr), 12)
        assert found.loss == pytest.approx(record.final_loss)
        assert [found] == searched(self.DIGITS, 0, curve, lr_range, [search])

    def test_a_search_whose_trials_are_lost_or_pruned_ends_in_a_guarded_training(self):
        # Two of the three are lost, and the last one is pruned before that is noticed.
        curve, search = lr_curve(self.DIGITS, 0), Search(3, 1.0, "successive halving")
        (found,) = searched(self.DIGITS, 0, curve, LRRange(1.0, 3.0), [search])
        assert found.lr == pytest.approx(1 / 3)
        record = recorded(self.DIGITS, 0, LRRange(1 / 9, 1 / 3), 12)
        assert found.loss == pytest.approx(record.final_loss)
