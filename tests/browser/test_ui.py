"""What a person finds in the MLflow UI, by the clicks that docs/how-to/read-the-ui.md names."""

import re

import pytest

from mlflow_project.tracking.views import view_page

pytestmark = pytest.mark.slow
CHAIN = "main digits mlp batch 128 seed 0"
RANGE_TESTS = [f"lrrt digits mlp batch {size} seed 0" for size in (256, 32)]


def open_page(page, site, path, switched=True):
    """Open a page of the UI, by its address behind the '#'."""
    query = "?workflowType=machine_learning" if switched else ""
    if not switched:
        # It covers that view as soon as there are data, which may be before or after any click.
        tip = page.get_by_role("dialog").filter(has_text="Detect Issues in Your Traces")
        page.add_locator_handler(tip, lambda: tip.get_by_role("button", name="Got it").click())
    page.goto(f"{site.address}#/{path}{query}", wait_until="domcontentloaded")
    # The panel of the assistant opens by itself, once, and takes a quarter of the width.
    page.get_by_role("button", name="Close").click()


def open_runs(page, site):
    open_page(page, site, f"experiments/{site.experiment_id}/runs")
    row(page, CHAIN).first.wait_for()


def open_run(page, site, run, tab=""):
    open_page(page, site, f"experiments/{site.experiment_id}/runs/{run.info.run_id}{tab}")
    title(page, run.info.run_name).wait_for()


def title(page, name):
    return page.get_by_role("heading", name=name, exact=True)


def row(page, name):
    """The rows of the table of runs with this name."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def description(page):
    """A run's description; of a long one the page shows the beginning until it is told."""
    heading = page.get_by_role("heading", name="Description")
    heading.wait_for()
    more = page.get_by_text("Show more")
    if more.count():
        more.click()
    return heading.locator("xpath=following::div[.//p][1]")


def leads_to(page, link, run):
    """Whether a link opens this run's page, in the tab that it opens."""
    with page.expect_popup() as opened:
        link.click()
    title(opened.value, run.info.run_name).wait_for()
    return run.info.run_id in opened.value.url


def test_model_training_is_a_click_away(page, site):
    open_page(page, site, f"experiments/{site.experiment_id}", switched=False)
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="Runs", exact=True).click()
    row(page, CHAIN).first.wait_for()
    assert [row(page, name).count() for name in RANGE_TESTS] == [1, 1]
    # The steps of a chain are under it.
    steps = [f"{stage} digits mlp batch 128 seed 0" for stage in ("lrrt", "refine")]
    assert [row(page, name).count() for name in steps] == [0, 0]
    row(page, CHAIN).get_by_role("button").first.click()
    for name in steps:
        row(page, name).first.wait_for()


def test_a_commands_address_shows_the_suggested_ranges_as_columns(page, site):
    # As it is printed, in a browser that has never been here.
    page.goto(f"{site.address}{view_page(site.experiment_id)}", wait_until="domcontentloaded")
    page.get_by_role("button", name="Close").click()
    row(page, CHAIN).first.wait_for()
    for name in ("suggested_lr_min", "suggested_lr_max", "batch_size", "lrrt.verdict"):
        page.get_by_role("columnheader", name=name).last.wait_for()
    shown = column(page, "suggested_lr_max")
    # Of the runs that are not under another: the chain, the training, two range tests.
    outer = [each for each in site.runs if "mlflow.parentRunId" not in each.data.tags]
    found = [each.data.metrics.get("suggested_lr_max") for each in outer]
    assert shown == [each for each in found if each is not None]


def column(page, name):
    """The numbers of a column, from top to bottom."""
    cells = page.locator(f"[role=gridcell][col-id*={name}]")
    texts = cells.evaluate_all(
        """cells => cells.map(cell => [cell.getBoundingClientRect().top, cell.innerText])
        .sort((one, other) => one[0] - other[0]).map(([top, text]) => text)"""
    )
    return [float(text) for text in texts if text != "-"]


def test_a_chains_page_says_what_came_out_and_leads_on(page, site):
    open_run(page, site, site.run("main"))
    told = description(page)
    suggested = site.run("lrrt", batch_size="128").data.metrics["suggested_lr_max"]
    assert f"{suggested:.3g}" in told.inner_text()
    page.get_by_text(re.compile(r"^digits \([0-9a-f]{32}\)$")).wait_for()
    training = site.run("train", schedule="one-cycle")
    assert leads_to(page, told.get_by_role("link", name=training.info.run_name), training)


def test_a_range_tests_page_leads_to_the_runs_that_start_from_it(page, site):
    open_run(page, site, site.run("lrrt", batch_size="128"))
    with page.expect_popup() as opened:
        description(page).get_by_role("link").last.click()
    table = opened.value
    # The steps of the chain are under it, as in the table of all runs.
    for name in (CHAIN, "train digits mlp batch 128 seed 0"):
        row(table, name).first.wait_for()
    assert [row(table, name).count() for name in RANGE_TESTS] == [0, 0]


def open_artifact(page, site, run, name):
    open_run(page, site, run, "/artifacts")
    page.get_by_text(name, exact=True).first.click()


def test_the_curve_is_shown_as_a_picture(page, site):
    run = site.run("lrrt", batch_size="256")
    open_artifact(page, site, run, "lrrt_curve.png")
    picture = page.locator("img[src^=blob]").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 400


def compare(page, runs):
    """Tick two rows of the table and press Compare."""
    for each in runs:
        each.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Run details").wait_for()


def compared(page, parameter):
    """The values of a parameter on the page of a comparison, by all there are."""
    (table,) = page.get_by_role("table").filter(has_text=parameter).all()
    rows = [each.locator("th, td").all_inner_texts() for each in table.get_by_role("row").all()]
    return {name.strip(): [value.strip() for value in values] for name, *values in rows}


def test_two_batch_sizes_differ_in_one_parameter(page, site):
    open_runs(page, site)
    compare(page, [row(page, name) for name in RANGE_TESTS])
    shown = compared(page, "batch_size")
    assert len(shown) <= 15
    page.get_by_text("Show diff only").first.click()
    page.get_by_role("row").filter(has_text="data_seed").wait_for(state="hidden")
    assert compared(page, "batch_size") == {"batch_size": ["256", "32"]}
    page.get_by_text("batch_size", exact=True).last.scroll_into_view_if_needed()


def test_losses_of_several_runs_are_drawn_over_the_learning_rate(page, site):
    open_runs(page, site)
    page.locator("label:has(input[value=CHART])").click()
    page.get_by_placeholder("Search metric charts").fill("smoothed_loss")
    page.get_by_text("(1)", exact=True).wait_for()
    page.get_by_test_id("experiment-view-compare-runs-card-menu").click()
    page.get_by_role("menuitem", name="Configure").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio", name="Metric").check()
    axis = dialog.get_by_role("combobox").first
    axis.click()
    axis.fill("log10_lr")
    page.get_by_title("log10_lr", exact=True).last.click()
    dialog.get_by_role("button", name="Save changes").click()
    dialog.wait_for(state="hidden")
    chart = page.locator(".js-plotly-plot").first
    chart.locator(".xtitle").filter(has_text=re.compile("^log10_lr$")).wait_for()
    chart.locator("path.js-line").nth(1).wait_for()
    for name in RANGE_TESTS:
        assert page.get_by_text(f"{name} (smoothed_loss)").count() == 1
