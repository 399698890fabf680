"""Every code block of the documentation runs, in the order of its page.

- `python`: in one namespace for the whole page; with a title, it is the file of that name.
- `console`: line by line by bash, which keeps folder and variables. The project's own commands run
  in this process, abridged: to import the project takes longer than most of them.
  ``SHORTER`` adds options that make them small.
- `text`: lines that the block before it prints, among others.
- `py`: an excerpt of a file in examples/.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import yaml
from sybil import Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from mlflow_project.cli import entry as cli
from tests.servers import mlflow_server
from tests.stores import TEMPLATES, abridge, search_path

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCKS = FencedCodeBlockLexer(r"\w+[^\n]*", {"language": "info", "source": "source"})
SMALL = "--iterations 60 --model mlp"
# The first that is in a command -> the options that it gets.
SHORTER = {
    r"study .*per_image": f"{SMALL} --workers 1 --tests 2 --batch-sizes 16,32"
    ' --dataset-args {"per_image":40}',
    r"study .*--kind (smoothing|validation)": f"{SMALL} --workers 1",
    r"study .*--kind.batch-size": f"{SMALL} --workers 1 --tests 2 --batch-sizes 64,128",
    r" study": f"{SMALL} --workers 1 --tests 2 --epochs 1",
    r" lrrt .*--tests": f"{SMALL} --workers 1 --tests 2",
    r" main .*--refine true": "--epochs 1 --trials 1",
    r" main": "--epochs 1",
    r" train": "--epochs 1",
    r" refine": "--trial-epochs 1",
}
# What installs; what runs these very tests; what needs Docker or a cluster, and is checked by
# tests/test_deploy.py; and what tests/browser, tests/examples and
# tests/mlflow_project/stages/test_optuna_dashboard.py run.
LEFT_OUT = (
    r"pip install|python3 -m venv|\. \.venv|make test|mlflow ui|optuna-dashboard|dvc |"
    r".*pipeline\.sh|docker |kubectl |sbatch |mlflow run deploy/kubernetes |"
    r"torchrun |python examples/ranks/"
)
PROJECT_RUN = re.compile(r"mlflow run \. -e (\w+) --env-manager local(.*)")
MAKE_RUN = re.search(r"mlflow run .*", (ROOT / "Makefile").read_text("utf-8"))[0]
OPERATOR = re.compile(r" (?=2>&1|\|\|? |&& |#)")


class Reader:
    """Carries out the blocks of a page, in the folder where it is made."""

    def __init__(self, capture, servers, template):
        self.capture, self.servers, self.address = capture, servers, "http://127.0.0.1:5000"
        self.template = template
        self.evaluate, self.printed = PythonEvaluator(), ""

    def __call__(self, document):
        """Yield the blocks of a page, as a parser of Sybil."""
        document.namespace["__name__"] = "__main__"  # the module of the classes that are defined
        for block in BLOCKS(document):
            language, _, info = block.lexemes["info"].partition(" ")
            title = re.search(r'title="(.+)"', info)
            evaluate = partial(self.file, title[1]) if title else getattr(self, language)
            yield Region(block.start, block.end, block.lexemes["source"], evaluate)

    def file(self, name, example):
        Path(name).write_text(example.parsed, "utf-8")
        importlib.invalidate_caches()

    def python(self, example):
        self.evaluate(example)
        self.printed = "".join(self.capture.readouterr())

    def text(self, example):
        lines = map(str.strip, example.parsed.splitlines())
        assert [line for line in lines if line not in self.printed] == [], self.printed

    def yaml(self, example):
        assert isinstance(yaml.safe_load(example.parsed), dict)  # test_deploy.py looks further

    def py(self, example):
        sources = [path.read_text("utf-8") for path in (ROOT / "examples").rglob("*.py")]
        assert any(" ".join(example.parsed.split()) in " ".join(s.split()) for s in sources)

    def console(self, example):
        self.printed = ""
        for line in example.parsed.replace("\\\n", " ").splitlines():
            if line.startswith("mlflow server"):
                options = re.sub(r" --port \d+", "", line).split()[2:]
                self.address = self.servers.enter_context(mlflow_server(*options, folder=Path()))
            elif line == TEMPLATES["own_project"][1][0].replace("{root}/", ""):
                shutil.copy(self.template("own_project") / "mlflow.db", "mlflow.db")
            elif line and not re.match(LEFT_OUT, line):
                self.run(line.replace("http://127.0.0.1:5000", self.address))

    def run(self, line):
        """Run a line by bash, and keep what it changes in folder and variables."""
        if entry_point := PROJECT_RUN.match(MAKE_RUN if line.startswith("make run") else line):
            # Its parameters are options of the command; tests/mlflow_project runs it by MLflow.
            options = entry_point[2].replace("--experiment-name", "--experiment")
            line = f"lrrt-stage {entry_point[1]}" + re.sub(r" -P (\w+)=", r" --\1=", options)
        stage = self.stage(line) if line.startswith("lrrt-stage ") else ""
        after = Path(".after").absolute()
        script = f"{stage}\n{line}\ncode=$?\n{{ pwd; env -0; }} > {after}\nexit $code"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        self.printed += done.stdout + done.stderr
        folder, _, variables = after.read_text("utf-8").partition("\n")
        os.environ.update(each.split("=", 1) for each in variables.split("\0") if each)
        os.chdir(folder)

    def stage(self, line):
        """Run a command of the project; return the bash function that prints and ends as it did."""
        call = OPERATOR.split(line)[0]
        words = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {call}"], text=True)
        shorter = next((more for begins, more in SHORTER.items() if re.search(begins, call)), "")
        with (
            # As a process of its own, which knows the variables alone.
            mock.patch.dict(os.environ),
            mock.patch("mlflow.tracking.fluent._active_experiment_id", None),
            mock.patch("mlflow.tracking._tracking_service.utils._tracking_uri", None),
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(SystemExit) as done,
        ):
            abridge(patch)
            cli.main([*words.split("\0")[1:-1], *shorter.split()])
        out, err = self.capture.readouterr()
        Path(".out").write_text(out)
        Path(".err").write_text(err)
        return f"lrrt-stage() {{ cat .out; cat .err >&2; return {done.value.code}; }}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch, capfd, template):
    template.copy("empty", tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "MLproject", tmp_path)
    shutil.copy(ROOT / "conda.yaml", tmp_path)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    variables |= {"PATH": search_path(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    with mock.patch.dict(os.environ, variables, clear=True), ExitStack() as servers:
        for example in Sybil(parsers=[Reader(capfd, servers, template)]).parse(ROOT / page):
            example.evaluate()
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
