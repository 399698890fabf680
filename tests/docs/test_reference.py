"""The reference pages in the repository are what the code says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.forked_python import programs

ROOT = Path(__file__).parents[2]
FOLDER = Path("docs/reference")


def generate(root, *arguments):
    """Run the script of the clone ``root``; return its exit code and what it prints."""
    done = subprocess.run(
        [programs() / "python", FOLDER / "generate.py", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_the_committed_pages_are_up_to_date():
    code, printed = generate(ROOT, "--check")
    assert code == 0, f"{printed}\nrun `python {FOLDER}/generate.py` and commit the pages"


@pytest.fixture
def clone(tmp_path):
    """A clone with one small package and a reference page of it."""
    for name in ("docs/settings_extension.py", FOLDER / "generate.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path / "greeting"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "from greeting.words import hello\n__all__ = ['hello']\n"
    )
    package.joinpath("words.py").write_text(
        "'''Words.'''\n__all__ = ['Voice', 'hello']\n"
        "class Voice:\n    '''A voice.'''\n"
        "    def say(self, word: str) -> None:\n        '''Say a | word. More.'''\n"
        "def hello(name: str, *, loud: bool = False) -> str:\n    '''Greet.'''\n"
    )
    page = tmp_path / FOLDER / "greeting.md"
    page.write_text("before\n<!-- generated: greeting.words -->\n<!-- /generated -->\nafter\n")
    return tmp_path


def test_a_page_has_names_with_forms_imports_and_first_sentences(clone):
    assert generate(clone, "--check")[0] == 1
    assert generate(clone)[0] == 0
    lines = (clone / FOLDER / "greeting.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "`from greeting import hello`" in lines
    assert "`from greeting.words import Voice`" in lines
    assert "| `hello(name, *, loud=False)` | Greet. |" in lines
    assert "| `Voice.say(word)` | Say a \\| word. |" in lines
    assert generate(clone, "--check")[0] == 0
