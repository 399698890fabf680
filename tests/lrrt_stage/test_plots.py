import numpy as np
import pytest

from lrrt_stage import LRCurve, suggest_all
from lrrt_stage.plots import curve_figure, curve_page, write_page

LR = np.geomspace(1e-5, 10, 80)
CURVES = {
    "descent": LRCurve(LR, 2.3 - 2 * np.exp(-((np.log10(LR) + 1) ** 2)), epochs=3.5),
    "flat": LRCurve(LR, np.full(80, 2.3)),
    "non-finite": LRCurve(LR[:30], [*np.linspace(2, 1, 29), np.nan], stop="non-finite"),
    "with validation": LRCurve(LR, np.linspace(2, 1, 80), val_loss=np.linspace(2.1, 1.2, 80)),
}


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
