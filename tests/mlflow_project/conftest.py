"""A real MLflow store for every test, with the product's commands run in this process."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from mlflow_project.cli import entry as cli


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


@dataclass
class Store:
    """A store of its own, and the commands on it."""

    capture: pytest.CaptureFixture

    # A small task, for every option that is not under test.
    SMALL = ("--model", "mlp", "--batch-size", "128", "--device", "cpu")

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

    def file(self, run, name):
        return mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name)

    def json(self, run, name):
        return json.loads(Path(self.file(run, name)).read_text(encoding="utf-8"))

    def history(self, run, metric):
        """Steps and values of a metric."""
        points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
        return [each.step for each in points], [each.value for each in points]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables, made once: it takes seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.search_experiments()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, capfd, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    artifacts = mlflow.create_experiment("test", (tmp_path / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=artifacts)
    yield Store(capfd)
    assert mlflow.active_run() is None
