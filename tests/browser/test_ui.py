"""What a person finds in the MLflow UI, by the clicks that docs/how-to/read-the-ui.md names."""

import re
from importlib.util import find_spec

import pytest

from tests.browser.conftest import CHROMIUM

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or find_spec("playwright") is None,
        reason="needs playwright and Chromium (apt-get install chromium, or set CHROMIUM)",
    ),
    # One worker fills one store.
    pytest.mark.xdist_group("browser"),
]

CHAIN = "main digits mlp seed 0"
STUDY = "study initializations digits mlp"


def open_page(page, site, path, switched=True):
    """Open a page of the UI, by its address behind the '#'."""
    query = "?workflowType=machine_learning" if switched else ""
    page.goto(f"{site.address}#/{path}{query}", wait_until="domcontentloaded")


def open_runs(page, site):
    open_page(page, site, f"experiments/{site.experiment_id}/runs")
    row(page, CHAIN).first.wait_for()


def open_run(page, site, run, tab=""):
    open_page(page, site, f"experiments/{site.experiment_id}/runs/{run.info.run_id}{tab}")


def row(page, name):
    """The rows of the table of runs with this name."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def test_model_training_is_a_click_away(page, site):
    open_page(page, site, f"experiments/{site.experiment_id}", switched=False)
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="Runs", exact=True).click()
    row(page, CHAIN).first.wait_for()
    assert row(page, STUDY).count() == 1
    assert row(page, "main digits mlp seed 1").count() == 0


def test_a_chains_steps_are_under_it(page, site):
    open_runs(page, site)
    assert row(page, "refine digits mlp seed 0").count() == 0
    row(page, CHAIN).get_by_role("button").first.click()
    for stage in ("lrrt", "refine", "train"):
        row(page, f"{stage} digits mlp seed 0").first.wait_for()
    assert row(page, "test seed 4").count() == 0
    row(page, STUDY).get_by_role("button").first.click()
    row(page, "test seed 4").first.wait_for()
