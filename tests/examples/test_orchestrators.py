"""The stages as processes of somebody else's pipeline: files and exit codes between them."""

import json
import os
import re
import shutil
import subprocess
from functools import partial, reduce
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from tests.stores import search_path
from tests.stores import shell as run_in_shell

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "orchestrators"
SMALL = "--dataset digits --model mlp --batch-size 128 --device cpu"


@pytest.fixture
def shell(tmp_path):
    """Run a command as from a shell in an empty folder, with this checkout's `lrrt-stage`."""
    for name in ("bin", "work"):
        (tmp_path / name).mkdir()
    path = f"{tmp_path / 'bin'}{os.pathsep}{search_path()}"
    return partial(run_in_shell, tmp_path / "work", PATH=path)


def result(tmp_path, name):
    return json.loads((tmp_path / "work" / name).read_text(encoding="utf-8"))


def test_the_shell_script_trains_with_its_range_test_and_checks_that_the_rate_fits(
    shell, tmp_path, template
):
    template.copy("empty", tmp_path / "work")
    script = str(FOLDER / "pipeline.sh")
    done = shell(script, "train", TASK=SMALL, EPOCHS="1")
    assert done.returncode == 0, done.stderr
    test, training = (result(tmp_path, f"results/{name}.json") for name in ("lrrt", "train"))
    assert (test["stage"], training["stage"]) == ("lrrt", "train")
    assert training["lrrt_run_id"] == test["run_id"]
    assert training["weights_sha256"] == test["weights_sha256"]
    assert str(training["trained_lr_max"]) in done.stdout

    done = shell(script, "check")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path, "results/check.json")["fits"] is True


@pytest.fixture
def stages(shell, tmp_path):
    """A stage that notes that it was called, and fails if it is named; the script is under test."""

    def fail(name, code):
        stage = tmp_path / "bin" / "lrrt-stage"
        stage.write_text(
            f'#!/bin/sh\necho "$1" >> calls\nif [ "$1" = {name} ]; then exit {code}; fi\n'
            "shift $(($# - 1))\n"
            """echo '{"run_id": "a", "trained_lr_max": 1, "val_accuracy": 1}' > "$1"\n"""
        )
        stage.chmod(0o755)
        return lambda: (tmp_path / "work" / "calls").read_text(encoding="utf-8").split()

    return fail


@pytest.mark.parametrize(
    ("code", "ends", "trains"), [(0, 0, False), (3, 0, True), (2, 2, False), (130, 130, False)]
)
def test_the_shell_script_trains_again_only_where_the_rate_no_longer_fits(
    shell, stages, code, ends, trains
):
    calls = stages("check", code)
    script = str(FOLDER / "pipeline.sh")
    assert shell(script, "train").returncode == 0
    assert shell(script, "check").returncode == ends
    assert calls() == ["lrrt", "train", "check", *["lrrt", "train"] * trains]


def test_the_shell_script_ends_with_the_exit_code_of_the_stage_that_failed(shell, stages):
    calls = stages("lrrt", 2)
    script = str(FOLDER / "pipeline.sh")
    assert shell(script, "train").returncode == 2
    assert calls() == ["lrrt"]
    assert shell(script, "trian").returncode == 2


def paths(stage, *kinds):
    """Files of a stage: an entry is a path, or a path with its options."""
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def filled(text, params):
    """A command with the values of params.yaml in it."""
    return re.sub(
        r"\$\{([\w.]+)\}", lambda m: str(reduce(dict.__getitem__, m[1].split("."), params)), text
    )


def test_the_dvc_stages_run_in_the_order_of_their_files(store, tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(FOLDER / name, tmp_path)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["task"] |= {"model": "mlp", "batch_size": 128}
    params["train"]["epochs"] = 1

    makes = {out: name for name, stage in stages.items() for out in paths(stage, "outs", "metrics")}
    needs = {name: {makes[dep] for dep in paths(stage, "deps")} for name, stage in stages.items()}
    order = list(TopologicalSorter(needs).static_order())
    assert order == ["range-test", "train"]
    for name in order:
        stage = stages[name]
        assert all(Path(dep).exists() for dep in paths(stage, "deps"))
        assert set(paths(stage, "params")) <= set(params)
        used = {word.partition(".")[0] for word in re.findall(r"\$\{([\w.]+)\}", stage["cmd"])}
        assert used == set(paths(stage, "params"))
        # Words as a shell makes them; the command then runs in this process.
        words = ["sh", "-c", f"printf '%s\\0' {filled(stage['cmd'], params)}"]
        store.run(*subprocess.check_output(words, text=True).split("\0")[1:-1])
        assert all(Path(out).exists() for out in paths(stage, "outs", "metrics"))
    test, training = (json.loads(Path(f"{name}.json").read_text()) for name in ("lrrt", "train"))
    assert training["lrrt_run_id"] == test["run_id"]
