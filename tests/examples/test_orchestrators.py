"""The stages as processes of somebody else's pipeline: files and exit codes between them."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import reduce
from graphlib import TopologicalSorter
from pathlib import Path

import mlflow
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "orchestrators"
SMALL = "--dataset digits --model mlp --batch-size 128 --device cpu"


@pytest.fixture
def shell(tmp_path):
    """Run a command as from a shell in an empty folder, with this checkout's `lrrt-stage`."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    script = bin_ / "lrrt-stage"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlflow_project "$@"\n')
    script.chmod(0o755)
    (tmp_path / "work").mkdir()
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]])
    outside |= {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*command, **variables):
        return subprocess.run(
            command,
            cwd=tmp_path / "work",
            env=outside | variables,
            capture_output=True,
            text=True,
        )

    return run


def result(tmp_path, name):
    return json.loads((tmp_path / "work" / name).read_text(encoding="utf-8"))


def test_the_shell_script_trains_with_the_range_test_that_it_ran(shell, tmp_path):
    done = shell(str(FOLDER / "pipeline.sh"), "train", TASK=SMALL, EPOCHS="2")
    assert done.returncode == 0, done.stderr
    test, training = (result(tmp_path, f"results/{name}.json") for name in ("lrrt", "train"))
    assert (test["stage"], training["stage"]) == ("lrrt", "train")
    assert training["lrrt_run_id"] == test["run_id"]
    assert training["weights_sha256"] == test["weights_sha256"]
    assert f"trained up to {training['trained_lr_max']}" in done.stdout


def test_as_an_entry_point_its_stages_are_children_of_the_run(shell, tmp_path):
    work = tmp_path / "work"
    entry = {"main": {"command": f"bash {FOLDER / 'pipeline.sh'} train"}}
    (work / "MLproject").write_text(yaml.safe_dump({"name": "nightly", "entry_points": entry}))
    done = shell("mlflow", "run", ".", "--env-manager", "local", TASK=SMALL, EPOCHS="1")
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{work}/mlflow.db")
    runs = {run.data.tags.get("lrrt.stage"): run for run in client.search_runs(["0"])}
    assert set(runs) == {None, "lrrt", "train"}
    outer = runs[None]
    assert outer.info.status == "FINISHED"
    for stage in ("lrrt", "train"):
        assert runs[stage].data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_the_shell_script_ends_with_the_exit_code_of_the_stage_that_failed(shell, tmp_path):
    script = str(FOLDER / "pipeline.sh")
    done = shell(script, "train", TASK="--dataset digtis")
    assert done.returncode == 2
    assert "did you mean 'digits'?" in done.stderr
    assert not (tmp_path / "work" / "results" / "train.json").exists()
    assert shell(script, "trian").returncode == 2


def test_the_shell_script_says_that_the_learning_rate_still_fits(shell, tmp_path):
    script = str(FOLDER / "pipeline.sh")
    assert shell(script, "train", TASK=SMALL, EPOCHS="1").returncode == 0
    done = shell(script, "check")
    assert done.returncode == 0, done.stderr
    assert "the learning rate still fits" in done.stdout
    assert result(tmp_path, "results/check.json")["fits"] is True


@pytest.mark.parametrize(
    ("code", "ends", "trains"), [(0, 0, False), (3, 0, True), (2, 2, False), (130, 130, False)]
)
def test_the_shell_script_trains_again_only_where_the_rate_no_longer_fits(
    shell, tmp_path, code, ends, trains
):
    # The script alone is under test here: its stages note that they were called.
    stage = tmp_path / "bin" / "lrrt-stage"
    stage.write_text(
        f'#!/bin/sh\necho "$1" >> calls\nif [ "$1" = check ]; then exit {code}; fi\n'
        "shift $(($# - 1))\n"
        """echo '{"run_id": "a", "trained_lr_max": 1, "val_accuracy": 1}' > "$1"\n"""
    )
    script = str(FOLDER / "pipeline.sh")
    assert shell(script, "train").returncode == 0
    assert shell(script, "check").returncode == ends
    calls = (tmp_path / "work" / "calls").read_text(encoding="utf-8").split()
    assert calls == ["lrrt", "train", "check", *["lrrt", "train"] * trains]


def paths(stage, *kinds):
    """Files of a stage: an entry is a path, or a path with its options."""
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def filled(text, params):
    """A command with the values of params.yaml in it."""
    return re.sub(
        r"\$\{([\w.]+)\}", lambda m: str(reduce(dict.__getitem__, m[1].split("."), params)), text
    )


def test_the_dvc_stages_run_in_the_order_of_their_files(shell, tmp_path):
    work = tmp_path / "work"
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(FOLDER / name, work)
    stages = yaml.safe_load((work / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = yaml.safe_load((work / "params.yaml").read_text(encoding="utf-8"))
    params["task"] |= {"model": "mlp", "batch_size": 128}
    params["train"]["epochs"] = 2

    makes = {out: name for name, each in stages.items() for out in paths(each, "outs", "metrics")}
    needs = {name: {makes[dep] for dep in paths(each, "deps")} for name, each in stages.items()}
    order = list(TopologicalSorter(needs).static_order())
    assert order == ["range-test", "train"]
    for name in order:
        stage = stages[name]
        assert all((work / dep).exists() for dep in paths(stage, "deps"))
        assert set(paths(stage, "params")) <= set(params)
        used = {word.partition(".")[0] for word in re.findall(r"\$\{([\w.]+)\}", stage["cmd"])}
        assert used == set(paths(stage, "params"))
        done = shell("sh", "-c", filled(stage["cmd"], params))
        assert done.returncode == 0, done.stderr
        assert all((work / out).exists() for out in paths(stage, "outs", "metrics"))
    assert result(tmp_path, "train.json")["lrrt_run_id"] == result(tmp_path, "lrrt.json")["run_id"]
