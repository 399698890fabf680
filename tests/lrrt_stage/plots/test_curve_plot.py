from dataclasses import replace

import numpy as np
import pytest

from lrrt_stage import LRCurve, suggest_all
from lrrt_stage.plots.curve_plot import curve_figure, curve_page, write_page

LR = np.geomspace(1e-5, 10, 80)
CURVES = {
    "descent": LRCurve(LR, 2.3 - 2 * np.exp(-((np.log10(LR) + 1) ** 2)), epochs=3.5),
    "flat": LRCurve(LR, np.full(80, 2.3)),
    "non-finite": LRCurve(LR[:30], [*np.linspace(2, 1, 29), np.nan], stop="non-finite"),
    "with validation": LRCurve(LR, np.linspace(2, 1, 80), val_loss=np.linspace(2.1, 1.2, 80)),
}


FULL = LRCurve(LR, np.linspace(2, 1, 80), val_loss=np.linspace(2.1, 1.2, 80))
# Of the iterations, a few with the loss of the full set.
TAKEN = np.where(np.arange(80) % 20 == 0, 1.5, np.nan)
object.__setattr__(FULL, "full_val_loss", TAKEN)
CURVES["with validation on the full set"] = FULL


@pytest.mark.parametrize("name", CURVES)
def test_a_picture_and_a_page_of_every_curve(name, tmp_path):
    curve = CURVES[name]
    answers = suggest_all(curve)
    curve_figure(curve, answers, "article").savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = write_page(curve_page(curve, answers, "article"), tmp_path / "curve.html")
    text = page.read_text(encoding="utf-8")
    # Nothing is fetched when the page is opened.
    assert "<script src=" not in text


def test_the_picture_shows_log_axis_both_losses_the_range_and_every_rule():
    curve = CURVES["descent"]
    answers = suggest_all(curve)
    (axes,) = curve_figure(curve, answers, "article").axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "learning rate"
    labels = " | ".join(text.get_text() for text in axes.get_legend().get_texts())
    assert "loss of each batch" in labels
    assert "smoothed (corrected, β = 0.98)" in labels
    assert f"suggested range (article): {answers['article']}" in labels
    for rule, answer in answers.items():
        assert rule in labels
        assert f"{answer.max:.3g}" in labels
    assert "80 iterations, 3.5 epochs" in axes.get_title()


def names(page):
    return [each.name for each in (*page.data, *page.layout.shapes) if each.showlegend]


def test_the_page_shows_what_the_picture_shows():
    curve = CURVES["with validation"]
    answers = suggest_all(curve)
    (axes,) = curve_figure(curve, answers, "article").axes
    page = curve_page(curve, answers, "article")
    assert names(page) == [text.get_text() for text in axes.get_legend().get_texts()]
    assert "validation loss" in names(page)
    assert page.layout.annotations[0].text == axes.get_title()
    assert page.layout.yaxis.range == pytest.approx(axes.get_ylim())
    assert page.layout.xaxis.type == "log"
    assert page.data[0].text[:2] == ("iteration 0", "iteration 1")


def test_validation_on_the_full_set_is_marked_where_it_was_taken():
    (axes,) = curve_figure(FULL, suggest_all(FULL), "article").axes
    (drawn,) = [
        line for line in axes.get_lines() if line.get_label() == "validation loss, full set"
    ]
    assert drawn.get_linestyle() == "None"
    assert drawn.get_xdata().tolist() == LR[::20].tolist()
    assert drawn.get_ydata().tolist() == [1.5] * 4
    page = curve_page(FULL, suggest_all(FULL), "article")
    assert names(page)[2:4] == ["validation loss (sample)", "validation loss, full set"]
    trace = page.data[3]
    assert trace.mode == "markers"
    assert trace.text == ("iteration 0", "iteration 20", "iteration 40", "iteration 60")


def test_the_ramp_that_robust_reads_is_dashed():
    curve = replace(CURVES["descent"], probe_loss=CURVES["descent"].loss)
    reference = replace(curve[:50], probe_loss=curve.loss[:50] / 2)
    apart = replace(curve, reference=reference)
    (axes,) = curve_figure(apart, suggest_all(curve), "article").axes
    (drawn,) = [line for line in axes.get_lines() if "(read by robust)" in line.get_label()]
    assert drawn.get_linestyle() == "--"
    assert drawn.get_ydata().tolist() == reference.probe_loss.tolist()
    page = curve_page(apart, suggest_all(curve), "article")
    assert [each.line.dash for each in page.data if each.name == drawn.get_label()] == ["dash"]


def test_an_explosion_leaves_the_axis_at_the_top():
    # A plateau at 2, a descent to 0, then a thousand million.
    loss = np.concatenate([np.full(40, 2.0), np.linspace(2, 0, 35), np.geomspace(1, 1e9, 5)])
    curve = LRCurve(LR, loss, stop="diverged")
    (axes,) = curve_figure(curve, suggest_all(curve), "article").axes
    assert axes.get_ylim() == pytest.approx((-0.3, 3.5))
