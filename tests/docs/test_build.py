"""The documentation builds without a warning, and nothing in it leads nowhere."""

import inspect
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lrrt_stage
import mlflow_project
import pipeline
from mlflow_project.cli.commands import commands
from tests.forked_python import programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Links(HTMLParser):
    """The anchors of an HTML page, and the addresses that it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.linked, self.loaded = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values.get("id"), values.get("name")}
        if tag == "a" and "href" in values:
            self.linked.add(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.add(values["href"])
        elif "src" in values:
            self.loaded.add(values["src"])


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built pages; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [programs() / "python", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site):
    found = {path: Links(path) for path in sorted(site.rglob("*.html"))}
    # Its links begin at the root of a server.
    del found[site / "404.html"]
    return found


def test_every_link_leads_to_a_page_and_an_anchor(pages):
    for page, links in pages.items():
        for address in links.linked | links.loaded:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page.name}: {address}"


def test_nothing_is_loaded_from_elsewhere(pages):
    for page, links in pages.items():
        assert not [each for each in links.loaded if urlsplit(each).netloc], page


def test_every_page_is_in_the_navigation(site, pages):
    index = pages[site / "index.html"]
    reachable = {(site / urlsplit(each).path).resolve() for each in index.linked}
    for page in pages:
        assert page in reachable or page.parent in reachable, page


@pytest.mark.parametrize("package", [lrrt_stage, pipeline, mlflow_project])
def test_the_reference_shows_what_a_package_exports(package, site):
    anchors = Links(site / "reference" / f"{package.__name__}.html").anchors - {None}
    shown = {each.rpartition(".")[2] for each in anchors if each.startswith(package.__name__)}
    exported = {name for name in package.__all__ if not inspect.ismodule(getattr(package, name))}
    assert exported <= shown


def test_the_reference_shows_every_option_with_its_default(site):
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in commands.commands.items():
        section = text[text.index(f'id="{name}"') :]
        for option in command.params:
            shown = option.opts[0] if option.opts[0].startswith("-") else option.metavar
            assert f"<code>{shown}</code>" in section, (name, option.name)
    assert "<code>~/.cache/lrrt-stage</code>" in text
    assert "[default:" not in text


def test_the_readmes_links_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert urlsplit(address).scheme or (ROOT / address).is_file(), address
