"""One store filled by the product's own commands, a server on it, and a browser."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tests.servers import mlflow_server

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@dataclass(frozen=True)
class Site:
    """A running MLflow UI, and what is in its store."""

    address: str
    experiment_id: str
    runs: list[Run]

    def run(self, stage: str, **params: str) -> Run:
        """The one run of a stage with these parameters."""
        (run,) = (
            run
            for run in self.runs
            if run.data.tags["lrrt.stage"] == stage and params.items() <= run.data.params.items()
        )
        return run


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None or find_spec("playwright") is None:
        pytest.skip("needs playwright and Chromium (apt-get install chromium, or set CHROMIUM)")
    return CHROMIUM


@pytest.fixture(scope="module")
def site(chromium, template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        template.enter("browser", folder, patch)
        runs = mlflow.search_runs(output_format="list")
        options = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db")
        with mlflow_server(*options, folder=folder) as address:
            yield Site(f"{address}/", runs[0].info.experiment_id, runs)


@pytest.fixture(scope="module")
def browser(chromium):
    # Not for the session: while it is open, this thread has an event loop that is running.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A page of a browser that has never been here; its picture, if SCREENSHOTS is a folder."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()
