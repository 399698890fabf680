from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure

from lrrt_stage import LRCurve, LRRange, Reading
from pipeline.training.loop import Epoch, TrainingHistory
from pipeline.training.plots import summary_figure, training_figure
from pipeline.training.search_plots import search_figures

optuna.logging.set_verbosity(optuna.logging.WARNING)
mpl.use("Agg")

LR = [0.1, 0.2, 0.3, 0.2]
LOSS = [2.0, 1.5, 1.2, 1.0]
STEPS, VAL = [2, 4], [1.6, 1.125]


def training(lr=LR, train_loss=LOSS, steps=STEPS, val_loss=VAL) -> TrainingHistory:
    epochs = [
        Epoch(step, loss, {"accuracy": 0.5}) for step, loss in zip(steps, val_loss, strict=True)
    ]
    return TrainingHistory(lr, train_loss, epochs)


def drawn(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a figure, by label."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in figure.axes
        for line in axes.get_lines()
    }


def assert_written(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    assert mpl.image.imread(path)[..., :3].std() > 0.01  # not one colour


def curve() -> LRCurve:
    """A fall of the loss, then its explosion."""
    lr = np.geomspace(1e-5, 10, 100)
    return LRCurve(lr, 2.3 - 2 / (1 + (0.01 / lr)) + 3 * lr**2, stop="diverged")


class TestTraining:
    def test_losses_and_rates_stand_at_their_iterations(self):
        lines = drawn(training_figure(training()))

        assert lines["training loss"] == ([0, 1, 2, 3], LOSS)
        assert lines["validation loss"] == (STEPS, VAL)
        assert lines["learning rate (right axis)"] == ([0, 1, 2, 3], LR)

    def test_the_title_tells_length_and_result(self):
        title = training_figure(training()).axes[0].get_title()

        assert "4 iterations" in title
        assert "1.125" in title

    def test_the_loss_axis_is_logarithmic_where_it_can_be(self):
        def scale(losses: list[float]) -> str:
            return training_figure(training(train_loss=losses)).axes[0].get_yscale()

        assert scale(LOSS) == "log"
        assert scale([2.0, 1.0, 0.0, 1.0]) == "linear"

    def test_it_can_be_written(self, tmp_path):
        assert_written(training_figure(training()), tmp_path / "training.png")

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_so_can_a_training_that_diverged(self, tmp_path, bad):
        figure = training_figure(training(LR, [2.0, 1e9, bad, bad], [4], [bad]))
        assert_written(figure, tmp_path / "training.png")

    def test_so_can_a_training_without_an_epoch(self, tmp_path):
        assert_written(training_figure(training([], [], [], [])), tmp_path / "training.png")


class TestSummary:
    def test_the_range_that_was_trained_is_marked_beside_the_training(self, tmp_path):
        trained = LRRange(0.002, 0.03)
        reading = Reading.from_curve(curve(), "steepest")
        figure = summary_figure(reading, trained, training())

        assert drawn(figure)[f"trained: {trained}"][0] == [0.002, 0.03]
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert f"trained: {trained}" in labels
        assert drawn(figure)["validation loss"] == (STEPS, VAL)
        assert_written(figure, tmp_path / "summary.png")

    def test_a_curve_that_no_rule_has_a_suggestion_for_can_be_drawn(self, tmp_path):
        flat = Reading.from_curve(LRCurve(np.geomspace(1e-5, 1, 50), np.ones(50)))
        figure = summary_figure(flat, LRRange(0.01, 0.1), training())
        assert_written(figure, tmp_path / "summary.png")


def search(values: list[float]) -> optuna.Study:
    made = optuna.create_study()
    distribution = {"peak_lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
    for index, value in enumerate(values):
        made.add_trial(
            optuna.trial.create_trial(
                params={"peak_lr": 10 ** (-0.3 * index)}, distributions=distribution, value=value
            )
        )
    return made


class TestSearch:
    @pytest.mark.parametrize(
        "values",
        [[0.5, 0.3, 0.4, 0.2], [0.5], [0.5, 0.5], [math.inf, 0.5, 0.3, math.inf], [math.inf] * 3],
    )
    def test_history_and_slice_can_be_written(self, tmp_path, values):
        figures = search_figures(search(values))

        assert set(figures) == {"history.png", "loss_over_peak_lr.png"}
        for name, figure in figures.items():
            assert_written(figure, tmp_path / name)

    def test_every_loss_is_drawn_over_its_learning_rate(self):
        figure = search_figures(search([0.5, 0.3, 0.4]))["loss_over_peak_lr.png"]
        points = figure.axes[0].collections[0].get_offsets().data

        assert sorted(points[:, 1].tolist()) == [0.3, 0.4, 0.5]
        assert points[:, 0].tolist() == pytest.approx([1.0, 10**-0.3, 10**-0.6])
        assert figure.axes[0].get_xscale() == "log"

    def test_the_style_of_other_figures_stays(self):
        with mpl.rc_context():
            mpl.rcdefaults()  # whatever other figures may have left behind
            before = mpl.rcParams.copy()
            search_figures(search([0.5, 0.3, 0.4]))

            assert mpl.rcParams == before

    def test_no_figure_is_left_open(self):
        import matplotlib.pyplot as plt

        before = plt.get_fignums()
        search_figures(search([0.5, 0.3, 0.4]))

        assert plt.get_fignums() == before
