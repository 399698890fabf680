"""What a person finds in the MLflow UI, by the clicks that docs/how-to/read-the-ui.md names."""

import contextlib
import re
import time

import pytest

from mlflow_project.tracking.views import view_page

CHAIN = "main digits mlp batch 128 seed 0"
STUDY = "study initializations digits mlp"
RANGE_TESTS = [f"lrrt digits cnn batch {size} seed 0" for size in (256, 32)]


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


def expand(page, name):
    row(page, name).get_by_role("button").first.click()


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


def table_below(page, heading):
    """The rows of the table of a run's page under this heading, as texts of their cells."""
    box = page.get_by_role("heading", name=re.compile(rf"^{heading} \(\d+\)$")).locator("..")
    rows = box.get_by_role("row")
    rows.nth(1).wait_for()
    return [each.get_by_role("cell").all_inner_texts() for each in rows.all()[1:]]


def test_model_training_is_a_click_away(page, site):
    open_page(page, site, f"experiments/{site.experiment_id}", switched=False)
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="Runs", exact=True).click()
    row(page, CHAIN).first.wait_for()
    assert row(page, STUDY).count() == 1
    assert [row(page, name).count() for name in RANGE_TESTS] == [1, 1]
    assert row(page, "main digits mlp batch 128 seed 1").count() == 0


def test_the_steps_of_a_chain_are_under_it(page, site):
    open_runs(page, site)
    assert row(page, "refine digits mlp batch 128 seed 0").count() == 0
    expand(page, CHAIN)
    for stage in ("lrrt", "refine", "train"):
        row(page, f"{stage} digits mlp batch 128 seed 0").first.wait_for()
    assert row(page, "test seed 4").count() == 0
    expand(page, STUDY)
    row(page, "test seed 4").first.wait_for()


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


def test_the_suggested_range_becomes_columns_to_sort_by(page, site):
    open_runs(page, site)
    # Without the first there is room.
    show_columns(page, "Dataset", "batch_size", "suggested_lr_min", "suggested_lr_max")
    header = page.get_by_role("columnheader", name="suggested_lr_max").last
    suggested = [each.data.metrics.get("suggested_lr_max") for each in site.runs]
    rising = sorted(filter(None, suggested))
    for in_order in (rising[::-1], rising):
        header.click()
        deadline = time.monotonic() + 20
        while (shown := column(page, "suggested_lr_max")) != in_order:
            assert time.monotonic() < deadline, shown
            page.wait_for_timeout(200)


def test_a_saved_view_is_there_for_everyone(page, site):
    open_runs(page, site)
    show_columns(page, "Dataset", "batch_size")
    page.get_by_role("button", name="Views").click()
    page.get_by_text("Save as new view").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("Batch sizes")
    dialog.get_by_role("button", name="Save").click()
    dialog.get_by_role("button", name="Copy").wait_for()
    with contextlib.closing(page.context.browser.new_context(viewport=page.viewport_size)) as new:
        other = new.new_page()
        open_runs(other, site)
        header = other.get_by_role("columnheader", name="batch_size")
        assert header.count() == 0
        other.get_by_role("button", name="Views").click()
        other.get_by_text("Batch sizes", exact=True).click()
        header.last.wait_for()


def show_columns(page, *names):
    """Tick (or untick) columns; the list is too long to look through."""
    page.get_by_test_id("column-selection-dropdown").filter(has_text="Columns").click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        page.get_by_role("tree").locator("..").get_by_text(name, exact=True).click()
    page.keyboard.press("Escape")


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
    text = told.inner_text()
    assert len(re.findall(r"\.(?= |$)", text.strip())) == 3, text
    for words in ("suggests learning rates from", "very weights", "validation accuracy of"):
        assert words in text
    page.get_by_text(re.compile(r"^digits \([0-9a-f]{32}\)$")).wait_for()
    training = site.run("train", schedule="one-cycle")
    assert leads_to(page, told.get_by_role("link", name=training.info.run_name), training)


def test_a_range_tests_page_leads_to_the_training(page, site):
    test = site.run("lrrt", model="mlp")
    open_run(page, site, test)
    told = description(page)
    assert told.get_by_role("link").all_inner_texts() == [
        "refine digits mlp batch 128 seed 0",
        *2 * ["train digits mlp batch 128 seed 0"],
    ]
    training = site.run("train", schedule="constant")
    assert leads_to(page, told.get_by_role("link").last, training)


@pytest.mark.parametrize("stage", ["main", "lrrt", "refine", "train", "study"])
def test_parameters_and_metrics_can_be_read(page, site, stage):
    run = next(each for each in site.runs if each.data.tags["lrrt.stage"] == stage)
    open_run(page, site, run)
    params = {name: value for name, value, *_ in table_below(page, "Parameters")}
    assert params == run.data.params
    assert 5 < len(params) <= 20
    for value in params.values():
        assert len(value) < 30
        assert not re.search(r"[<({\[]|^/|\b0x", value), value
    metrics = {name: float(value) for name, value, *_ in table_below(page, "Metrics")}
    assert metrics == pytest.approx(run.data.metrics)


def test_a_trainings_page_leads_to_its_model_and_the_registered_version(page, site):
    run = site.run("train", schedule="one-cycle")
    open_run(page, site, run)
    page.get_by_role("heading", name="Logged models (1)").wait_for()
    page.get_by_role("link", name="lrrt-digits").first.click()
    page.get_by_text("Trained over learning rates from").wait_for()
    assert "/models/lrrt-digits/versions/1" in page.url
    (shown,) = page.get_by_role("row").filter(has_text="lrrt.suggested_lr_max").all()
    suggested = run.data.metrics["suggested_lr_max"]
    assert float(shown.get_by_role("cell").nth(1).inner_text()) == suggested
    test = site.run("lrrt", model="mlp")
    assert leads_to(page, page.get_by_role("link", name=test.info.run_name), test)


def open_artifact(page, site, run, name):
    open_run(page, site, run, "/artifacts")
    page.get_by_text(name, exact=True).first.click()


@pytest.mark.parametrize(
    ("stage", "name"),
    [("lrrt", "lrrt_curve.png"), ("main", "summary.png"), ("train", "training.png")],
)
def test_a_picture_is_shown(page, site, stage, name):
    run = next(each for each in site.runs if each.data.tags["lrrt.stage"] == stage)
    open_artifact(page, site, run, name)
    picture = page.locator("img[src^=blob]").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 400


def test_the_interactive_curve_is_drawn(page, site):
    open_artifact(page, site, site.run("lrrt", batch_size="256"), "lrrt_curve.html")
    frame = page.frame_locator("iframe")
    frame.locator(".js-plotly-plot path.js-line").first.wait_for()
    assert "suggested range (robust)" in frame.locator("body").inner_text()


def test_a_studys_report_is_shown(page, site):
    open_artifact(page, site, site.run("study"), "report.html")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Learning-rate range tests: digits mlp").wait_for()
    frame.locator(".js-plotly-plot path.js-line").first.wait_for()


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


def test_two_trainings_differ_in_what_was_asked(page, site):
    open_runs(page, site)
    expand(page, CHAIN)
    names = row(page, "train digits mlp batch 128 seed 0")
    names.nth(1).wait_for()
    compare(page, names.all())
    shown = compared(page, "schedule")
    assert len(shown) <= 15
    assert {name: two for name, two in shown.items() if two[0] != two[1]} == {
        "epochs": ["1", "2"],
        "schedule": ["constant", "one-cycle"],
    }


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
