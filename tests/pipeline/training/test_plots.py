from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure

from lrrt_stage import LRCurve, LRRange, Smoothing
from pipeline.training.plots import study_figures, summary_figure, training_figure

optuna.logging.set_verbosity(optuna.logging.WARNING)
mpl.use("Agg")

LR = [0.1, 0.2, 0.3, 0.2]
TRAIN = [2.0, 1.5, 1.2, 1.0]
STEPS, VAL = [2, 4], [1.6, 1.125]


def drawn(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a figure, by label."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in figure.axes
        for line in axes.get_lines()
    }


def assert_written(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    width, height = np.array(figure.get_size_inches()) * figure.dpi
    image = mpl.image.imread(path)
    assert image.shape[:2] == (int(height), int(width))
    assert image[..., :3].std() > 0.01  # not one colour


def curve() -> LRCurve:
    """A fall of the loss, then its explosion."""
    lr = np.geomspace(1e-5, 10, 100)
    return LRCurve(lr, 2.3 - 2 / (1 + (0.01 / lr)) + 3 * lr**2, stop="diverged")


class TestTraining:
    def test_losses_and_rates_stand_at_their_iterations(self):
        lines = drawn(training_figure(LR, TRAIN, STEPS, VAL))

        assert lines["training loss"] == ([0, 1, 2, 3], TRAIN)
        assert lines["validation loss"] == (STEPS, VAL)
        assert lines["learning rate"] == ([0, 1, 2, 3], LR)

    def test_the_title_tells_length_and_result(self):
        title = training_figure(LR, TRAIN, STEPS, VAL).axes[0].get_title()

        assert "4 iterations" in title
        assert "1.125" in title

    def test_the_loss_axis_is_logarithmic_where_it_can_be(self):
        def scale(losses: list[float]) -> str:
            return training_figure(LR, losses, STEPS, VAL).axes[0].get_yscale()

        assert scale(TRAIN) == "log"
        assert scale([2.0, 1.0, 0.0, 1.0]) == "linear"

    def test_it_can_be_written(self, tmp_path):
        assert_written(training_figure(LR, TRAIN, STEPS, VAL), tmp_path / "training.png")

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_so_can_a_training_that_diverged(self, tmp_path, bad):
        figure = training_figure(LR, [2.0, 1e9, bad, bad], [4], [bad])
        assert_written(figure, tmp_path / "training.png")

    def test_so_can_a_training_without_an_epoch(self, tmp_path):
        assert_written(training_figure([], [], [], []), tmp_path / "training.png")


class TestSummary:
    def test_the_range_that_was_trained_is_marked_beside_the_training(self, tmp_path):
        trained = LRRange(0.002, 0.03)
        figure = summary_figure(
            curve(), "steepest", Smoothing(beta=0.5), trained, LR, TRAIN, STEPS, VAL
        )
        left = figure.axes[0]
        (bar,) = [c for c in left.collections if str(c.get_label()).startswith("trained")]

        assert bar.get_segments()[0][:, 0].tolist() == [0.002, 0.03]
        assert f"trained: {trained}" in [t.get_text() for t in left.get_legend().get_texts()]
        assert left.get_ylim()[0] < bar.get_segments()[0][0, 1] < left.get_ylim()[1]
        assert drawn(figure)["validation loss"] == (STEPS, VAL)
        assert_written(figure, tmp_path / "summary.png")

    def test_a_curve_that_no_rule_has_an_answer_for_can_be_drawn(self, tmp_path):
        flat = LRCurve(np.geomspace(1e-5, 1, 50), np.ones(50))
        figure = summary_figure(
            flat, "article", Smoothing(), LRRange(0.01, 0.1), LR, TRAIN, STEPS, VAL
        )
        assert_written(figure, tmp_path / "summary.png")


def study(values: list[float]) -> optuna.Study:
    made = optuna.create_study()
    distribution = {"peak_lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
    for index, value in enumerate(values):
        made.add_trial(
            optuna.trial.create_trial(
                params={"peak_lr": 10 ** (-0.3 * index)}, distributions=distribution, value=value
            )
        )
    return made


class TestStudy:
    def test_history_slice_and_importance_can_be_written(self, tmp_path):
        figures = study_figures(study([0.5, 0.3, 0.4, 0.2]))

        assert set(figures) == {"history.png", "loss_over_peak_lr.png", "importance.png"}
        for name, figure in figures.items():
            assert_written(figure, tmp_path / name)

    @pytest.mark.parametrize(
        "values", [[0.5], [0.5, 0.5], [0.5, math.inf], [math.inf, math.inf, math.inf]]
    )
    def test_importance_is_left_out_where_two_trials_do_not_differ(self, tmp_path, values):
        figures = study_figures(study(values))

        assert set(figures) == {"history.png", "loss_over_peak_lr.png"}
        for name, figure in figures.items():
            assert_written(figure, tmp_path / name)

    def test_trials_that_diverged_do_not_hide_the_others(self, tmp_path):
        figures = study_figures(study([math.inf, 0.5, 0.3, math.inf]))

        assert "importance.png" in figures
        for name, figure in figures.items():
            assert_written(figure, tmp_path / name)

    def test_every_loss_is_drawn_over_its_learning_rate(self):
        figure = study_figures(study([0.5, 0.3, 0.4]))["loss_over_peak_lr.png"]
        points = figure.axes[0].collections[0].get_offsets().data

        assert sorted(points[:, 1].tolist()) == [0.3, 0.4, 0.5]
        assert points[:, 0].tolist() == pytest.approx([1.0, 10**-0.3, 10**-0.6])
        assert figure.axes[0].get_xscale() == "log"

    def test_the_style_of_other_figures_stays(self):
        with mpl.rc_context():
            mpl.rcdefaults()  # whatever other figures may have left behind
            before = mpl.rcParams.copy()
            study_figures(study([0.5, 0.3, 0.4]))

            assert mpl.rcParams == before

    def test_no_figure_is_left_open(self):
        import matplotlib.pyplot as plt

        before = plt.get_fignums()
        study_figures(study([0.5, 0.3, 0.4]))

        assert plt.get_fignums() == before
