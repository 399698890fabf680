"""Every command and every code block of the documentation runs; see ``run_page.py`` for how."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(str(each.relative_to(ROOT)) for each in (ROOT / "docs").rglob("*.md")),
]
# What a reader's clone holds, as far as pages use it.
CLONE = ("lrrt_stage", "pipeline", "mlflow_project", "MLproject", "conda.yaml", "Makefile")
SECONDS = 600


def carried_out(page, folder):
    """Carry out a page in a clone of the project; return the process that has ended."""
    for name in CLONE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
        "CUDA_VISIBLE_DEVICES": "",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "TMPDIR": str(folder),
    }
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("run_page.py"), page],
        cwd=folder, env=environment, text=True, timeout=SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, tmp_path):
    done = carried_out(ROOT / page, tmp_path)
    assert done.returncode == 0, done.stdout


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
def test_a_block_that_does_not_run_is_an_error(block, reason, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    done = carried_out(page, tmp_path)
    assert done.returncode == 1
    assert reason in done.stdout


def test_a_reader_keeps_folder_variables_names_and_files(tmp_path):
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
    done = carried_out(page, tmp_path)
    assert done.returncode == 0, done.stdout
