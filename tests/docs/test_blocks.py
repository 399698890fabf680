"""Every command and every code block of the documentation runs; ``readers.py`` says how."""

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from readers import BLOCK, carry_out, forked, make_database

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(str(each.relative_to(ROOT)) for each in (ROOT / "docs").rglob("*.md")),
]
# What a reader's clone holds, as far as pages use it.
CODE = ("lrrt_stage", "pipeline", "mlflow_project", "examples")
CLONE = (*CODE, "MLproject", "conda.yaml", "Makefile")


@pytest.fixture(scope="module")
def variables():
    """What a reader's variables are at the beginning; those of the process forked from as well."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield dict(os.environ)


@pytest.fixture(scope="module")
def empty_database(variables, tmp_path_factory):
    """A database with MLflow's tables, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("database")
    assert forked("forkserver", make_database, folder, output=folder / "output.txt") == 0
    return folder / "mlflow.db"


@pytest.fixture
def carried_out(variables, empty_database, tmp_path):
    """A function from a page to the exit code and the output of carrying it out in a clone."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in CLONE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    shutil.copy(empty_database, clone)
    with closing(sqlite3.connect(clone / "mlflow.db")) as database, database:
        place = ((clone / "mlruns" / "0").as_uri(),)
        database.execute("UPDATE experiments SET artifact_location = ?", place)

    def carry_out_page(page):
        output = tmp_path / "output.txt"
        code = forked("forkserver", carry_out, page, clone, variables, output=output)
        return code, output.read_text(encoding="utf-8")

    return carry_out_page


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, carried_out):
    code, printed = carried_out(ROOT / page)
    assert code == 0, printed


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_overlooked(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count(FENCE) == 2 * len(BLOCK.findall(text)), "an indented or open block"


FENCE = "```"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (f"{FENCE}python\nx = 1\n{FENCE}\n\n{FENCE}python\nassert x == 2\n{FENCE}\n", "line 6"),
        (f"{FENCE}console\nlrrt-stage lrrt --modell cnn\n{FENCE}\n", "exit code 2"),
        (f"{FENCE}console\necho one\n{FENCE}\n\n{FENCE}text\ntwo\n{FENCE}\n", "not printed"),
        (f"{FENCE}json\n{{'one': 1}}\n{FENCE}\n", "JSONDecodeError"),
        (f"{FENCE}c\nint main()\n{FENCE}\n", "no language"),
    ],
)
def test_a_block_that_does_not_run_is_an_error(block, reason, carried_out, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    code, printed = carried_out(page)
    assert code == 1
    assert reason in printed


def test_a_reader_keeps_folder_variables_names_and_files(carried_out, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"{FENCE}console\nmkdir inner\ncd inner  # a comment\nexport NAME=value\n{FENCE}\n"
        f'{FENCE}python title="module.py"\nvalue = 3\n{FENCE}\n'
        f"{FENCE}python\nimport module\nfour = module.value + 1\n{FENCE}\n"
        f"{FENCE}console\necho $NAME $(basename $PWD) \\\n  on two lines\n{FENCE}\n"
        f"{FENCE}text\nvalue inner on two lines\n{FENCE}\n"
        f"{FENCE}python\nassert four == 4\n{FENCE}\n",
        encoding="utf-8",
    )
    code, printed = carried_out(page)
    assert code == 0, printed
