"""MLflow stores for tests: made once by the project's own commands, then copied.

``TEMPLATES`` names them. A test changes its copy, and nobody else's.
"""

import base64
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import matplotlib.figure
import matplotlib.legend
import mlflow
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.transforms import Bbox
from mlflow.entities import Run

from mlflow_project.cli import entry as cli
from tests.forked_python import programs

ROOT = Path(__file__).parents[1]
# A small task, for every option that is not under test.
SMALL = ("--model", "mlp", "--batch-size", "128", "--device", "cpu")
QUICK_STUDY = ("study", *SMALL, "--iterations", 60, "--workers", 1)
# A name -> the store that it begins with, and what is run there: commands, or lines of a shell.
TEMPLATES = {
    "empty": (None, ()),
    "lrrt": ("empty", [("lrrt", *SMALL)]),
    "refine": ("lrrt", [("refine", "--trials", 4, "--trial-epochs", 2)]),
    "train": (
        "empty",
        [("main", *SMALL, "--epochs", 8, "--register", "digits")],
    ),
    "main": (
        "empty",
        [("main", *SMALL, "--epochs", 2, "--refine", "true", "--trials", 2)],
    ),
    "study": ("empty", [(*QUICK_STUDY, "--tests", 4, "--validation", "sample")]),
    "browser": (
        "main",
        [
            ("train", "--lrrt-run-id", "latest", "--epochs", 1, "--schedule", "constant"),
            ("lrrt", *SMALL, "--batch-size", 32),
            ("lrrt", *SMALL, "--batch-size", 256),
        ],
    ),
    "own_project": (
        "empty",
        ["mlflow run {root}/examples/own_project --env-manager local --experiment-name tumours"],
    ),
}
# Those that are made as for a user: their pictures are looked at, or compared with other processes.
UNABRIDGED = {"browser", "study"}
RESAMPLES = 10
PIXELS = {
    "png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    ),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>',
}
# Where a database says where files are.
LOCATIONS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def abridge(patch: pytest.MonkeyPatch) -> None:
    """Leave out most of what a command does besides its own task: three quarters of its time.

    Figures are rendered by the tests of plots and of the browser, and by a few of the stages; the
    confidence in suggestions has tests of its own.
    """
    patch.setattr(matplotlib.figure.Figure, "savefig", save_a_pixel)
    patch.setattr(matplotlib.figure.Figure, "draw_without_rendering", lambda figure: None)
    patch.setattr(matplotlib.legend.Legend, "get_window_extent", lambda legend: Bbox.unit())
    patch.setattr("lrrt_stage.rules.uncertainty.RESAMPLES", RESAMPLES)


@contextmanager
def interrupted_after_epoch(epoch: int):
    """Ctrl-C when a training has logged this epoch."""
    stage = sys.modules["mlflow_project.stages.train"]
    real = stage.log_training

    def interrupting(training, *args):
        real(training, *args)
        if len(training.epochs) == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "log_training", interrupting)
        yield


def save_a_pixel(figure, file, *, format=None, **options):
    """Save a picture of one pixel in place of a figure."""
    content = PIXELS[format or Path(file).suffix[1:]]
    file.write(content) if hasattr(file, "write") else Path(file).write_bytes(content)


def search_path():
    """Where a shell finds the programs of this environment; Python starts without its imports."""
    places = [programs(), Path(sys.prefix) / "bin", os.environ["PATH"]]
    return os.pathsep.join(map(str, places))


def shell(folder, *command, **variables):
    """Run a command as from a shell in ``folder``; the project is this checkout."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    outside |= {"PATH": search_path(), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    outside |= {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)


@dataclass(frozen=True)
class Templates:
    """The stores of this test run in a folder, each made at its first use.

    Several processes may share the folder: one makes a store, the others wait for it.
    """

    folder: Path

    def __call__(self, name: str) -> Path:
        """Return the folder with a store's database and artifacts."""
        folder = self.folder / name
        if not (folder / "done").exists():
            self.folder.mkdir(exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "done").exists():
                    self._make(folder, *TEMPLATES[name])
        return folder

    def _make(self, folder, base, commands):
        folder.mkdir()
        with (
            # Whoever asks first for a store keeps the variables and the store that it is in.
            mock.patch.dict(os.environ),
            mock.patch("mlflow.tracking.fluent._active_experiment_id", None),
            mock.patch("mlflow.tracking._tracking_service.utils._tracking_uri", None),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.delenv("MLFLOW_RUN_ID", raising=False)
            if folder.name not in UNABRIDGED:
                abridge(patch)
            if base is None:
                patch.chdir(folder)
                mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
                mlflow.create_experiment("test", (folder / "artifacts").as_uri())
            else:
                self.enter(base, folder, patch)
            for command in commands:
                if isinstance(command, str):
                    done = shell(folder, *shlex.split(command.format(root=ROOT)))
                    assert done.returncode == 0, done.stderr
                    continue
                with pytest.raises(SystemExit) as done:
                    cli.main([str(argument) for argument in command])
                assert done.value.code == 0, command
        (folder / "done").touch()

    def enter(self, name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Copy a store to a folder, and use it there."""
        self.copy(name, folder)
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("test")

    def copy(self, name: str, folder: Path) -> None:
        """Copy a store to a folder."""
        template = self(name)
        shutil.copytree(template, folder, ignore=shutil.ignore_patterns("done"), dirs_exist_ok=True)
        with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
            for table, columns in LOCATIONS.items():
                for column in columns:
                    statement = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                    database.execute(statement, (template.as_uri(), folder.as_uri()))
                    # That of the default experiment is a path.
                    database.execute(statement, (str(template), str(folder)))


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that starts with Error."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]

    def names(self, *words) -> None:
        """Check that the error names these values and options."""
        assert [word for word in map(str, words) if word not in self.error] == [], self.error


@dataclass
class Store:
    """A store of a test's own, and the commands on it."""

    capture: pytest.CaptureFixture
    SMALL = SMALL

    def run(self, *arguments, code=0) -> Outcome:
        """Run a command as the console script does, and check its exit code."""
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            outcome = Outcome(exit_.code, *self.capture.readouterr())
        assert outcome.code == code, outcome.err + outcome.out
        return outcome

    def runs(self, stage=None) -> list[Run]:
        """The experiment's runs, newest first."""
        found = mlflow.search_runs(output_format="list", order_by=["attributes.start_time DESC"])
        return [run for run in found if stage in (None, run.data.tags.get("lrrt.stage"))]

    def one(self, stage) -> Run:
        (run,) = self.runs(stage)
        return run

    def children(self, run, stage=None) -> list[Run]:
        """The runs whose parent is ``run``, newest first."""
        parent = run.info.run_id
        return [r for r in self.runs(stage) if r.data.tags.get("mlflow.parentRunId") == parent]

    def artifacts(self, run) -> set[str]:
        return {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id)}

    def file(self, run, name) -> Path:
        """An artifact where the store keeps it."""
        return Path(run.info.artifact_uri.removeprefix("file://")) / name

    def json(self, run, name):
        return json.loads(self.file(run, name).read_text(encoding="utf-8"))

    def csv(self, run, name):
        # Before pandas 3, the default is faster and off in the last bit.
        return pd.read_csv(self.file(run, name), float_precision="round_trip")

    def history(self, run, metric):
        """Steps and values of a metric."""
        points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
        return [each.step for each in points], [each.value for each in points]
