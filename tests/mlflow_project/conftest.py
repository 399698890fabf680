"""A real MLflow store for every test, with the product's commands run in this process.

What many tests begin with is made once by the real commands (``TEMPLATES``), and copied.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock
from mlflow.entities import Run

from mlflow_project.cli import entry as cli

# A small task, for every option that is not under test.
SMALL = ("--model", "mlp", "--batch-size", "128", "--device", "cpu")
QUICK_STUDY = ("study", "--model", "mlp", "--iterations", 60, "--batch-size", 128)
TEMPLATES = {
    "empty": (),
    "lrrt": (("lrrt", *SMALL),),
    "train": (("main", *SMALL, "--epochs", 8, "--refine", "false", "--register", "digits"),),
    "refine": (("lrrt", *SMALL), ("refine", "--trials", 4, "--trial-epochs", 2)),
    "main": (("main", *SMALL, "--epochs", 2, "--trials", 2, "--trial-epochs", 1),),
    "study": (
        (*QUICK_STUDY, "--tests", 4, "--workers", 1, "--validation", "sample", "--device", "cpu"),
    ),
}
# Where a database says where files are.
LOCATIONS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self):
        """The one line that starts with Error."""
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]

    def names(self, *words):
        """Check that the error names these values and options."""
        assert [word for word in map(str, words) if word not in self.error] == []


@dataclass
class Store:
    """A store of its own, and the commands on it."""

    capture: pytest.CaptureFixture
    SMALL = SMALL

    def run(self, *arguments, code=0):
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

    def artifacts(self, run) -> set[str]:
        return {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id)}

    def file(self, run, name) -> Path:
        """An artifact where the store keeps it."""
        return Path(run.info.artifact_uri.removeprefix("file://")) / name

    def json(self, run, name):
        return json.loads(self.file(run, name).read_text(encoding="utf-8"))

    def history(self, run, metric):
        """Steps and values of a metric."""
        points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
        return [each.step for each in points], [each.value for each in points]


@pytest.fixture(scope="session")
def template(tmp_path_factory, worker_id):
    """A function from a name to the folder with that store, which is made at its first use.

    The workers of a test run share the folders: one makes a store, the others wait for it.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent

    def folder_of(name):
        folder = shared / "stores" / name
        if not (folder / "done").exists():
            empty = None if name == "empty" else folder_of("empty")
            folder.parent.mkdir(exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "done").exists():
                    make(folder, empty, TEMPLATES[name])
        return folder

    return folder_of


def make(folder, empty, commands):
    """Make the store that these commands leave in an experiment, from an empty one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        if empty is None:
            folder.mkdir()
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
            mlflow.create_experiment("test", (folder / "artifacts").as_uri())
        else:
            enter(empty, folder, patch)
        for command in commands:
            with pytest.raises(SystemExit) as done:
                cli.main([str(argument) for argument in command])
            assert done.value.code == 0, command
    (folder / "done").touch()


def enter(template, folder, patch):
    """Copy a store to a folder, and use it there."""
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns("done"), dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, columns in LOCATIONS.items():
            for column in columns:
                statement = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                database.execute(statement, (template.as_uri(), folder.as_uri()))
    patch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("test")


@pytest.fixture
def store(request, tmp_path, monkeypatch, capfd, template):
    """A store of the test's own; the marker ``starts_with`` names the one that it is a copy of."""
    marker = request.node.get_closest_marker("starts_with")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    enter(template(marker.args[0] if marker else "empty"), tmp_path, monkeypatch)
    capfd.readouterr()
    yield Store(capfd)
    assert mlflow.active_run() is None


@pytest.fixture
def lrrt(store):
    """The one range test of the store."""
    return store.one("lrrt")
