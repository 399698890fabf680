import shutil
from pathlib import Path

import pytest

import lrrt_stage
import mlflow_project
import pipeline
from mlflow_project.handoff.fingerprints import fingerprint
from pipeline import PreparedTask, Task


@pytest.mark.parametrize(
    ("package", "file"),
    [
        (lrrt_stage, "rules/robust.py"),
        (pipeline, "training/loop.py"),
        (mlflow_project, "stages/lrrt.py"),
        (mlflow_project, "handoff/handoff.py"),
    ],
)
def test_a_change_of_any_source_is_another_fingerprint(package, file, tmp_path, monkeypatch):
    prepared = PreparedTask(Task(model="mlp", batch_size=128))
    before = fingerprint("lrrt", prepared)
    copy = tmp_path / "copy"
    shutil.copytree(Path(package.__file__).parent, copy)
    with monkeypatch.context() as patch:
        patch.setattr(package, "__path__", [str(copy)])
        assert fingerprint("lrrt", prepared) == before
        with (copy / file).open("a") as source:
            source.write("# a change\n")
        assert fingerprint("lrrt", prepared) != before
