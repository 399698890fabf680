"""The wheel: all that an installation has, where there is no checkout."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution

import pytest

from tests.test_project import PACKAGES, PYPROJECT, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, and nothing else."""
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "site"))
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", built)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    (wheel,) = built.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_holds_every_file_of_the_three_packages_and_no_other(installed):
    def files(root):
        found = (path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file())
        return {path.relative_to(root) for path in found if path.suffix != ".pyc"}

    assert files(installed) == files(ROOT)
    (described,) = {path.name for path in installed.iterdir()} - {*PACKAGES}
    assert (installed / described / "licenses" / "LICENSE").is_file()


def test_every_adapter_has_an_extra(installed):
    (described,) = installed.glob("*.dist-info")
    metadata = PathDistribution(described).metadata
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == set(PYPROJECT["project"]["optional-dependencies"])
    adapters = {path.stem for path in (installed / "lrrt_stage" / "adapters").glob("*.py")}
    assert adapters - {"__init__", "arguments"} <= extras


def test_its_command_runs_in_an_empty_folder(installed, tmp_path):
    script = "import mlflow_project.cli as cli; assert {!r} in cli.__file__; cli.main()"
    options = ("lrrt", "--model", "mlp", "--batch-size", "128", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", script.format(str(installed)), *options],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "suggested LR range" in done.stdout
    assert (tmp_path / "mlflow.db").is_file()
