"""The programs on several processes, as ``torchrun`` and Lightning start them."""

import os
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.forked_python import programs
from tests.stores import ROOT, shell

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(os.cpu_count() < 2, reason="two processes need two cores"),
]
RANKS = ROOT / "examples" / "ranks"
TORCHRUN = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def run(*command):
    """Run a program; return what it prints last."""
    variables = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_NAME": "test",
        # Of the ranks that torchrun starts.
        "PYTHON_EXEC": str(programs() / "python"),
    }
    done = shell(Path.cwd(), *map(str, command), **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def range_tests(store):
    """The range tests in the experiment of the programs, newest first."""
    mlflow.set_experiment("digits")
    return store.runs("lrrt")


def require_alike(store, runs, tolerance=1e-3):
    curves = [np.array(store.history(run, "train_loss")[1]) for run in runs]
    for curve in curves[1:]:
        assert np.allclose(curve[:60], curves[0][:60], rtol=tolerance)
    for name in ("model", "optimizer"):
        assert len({run.data.params[name] for run in runs}) == 1
    assert len({run.data.tags["lrrt.weights_sha256"] for run in runs}) == 1


def test_ddp_and_fsdp_on_two_ranks_measure_what_one_rank_does(store):
    for size, *words in ((1,), (2,), (2, "fsdp")):
        line = run(*TORCHRUN, size, RANKS / "ddp.py", *words)
        assert float(line.split()[-1]) > 0.85
    runs = range_tests(store)
    require_alike(store, runs)
    assert [run.data.params.get("processes") for run in runs] == ["2", "2", None]
    assert {run.data.params["batch_size"] for run in runs} == {"64"}


def test_accelerate_prepares_what_is_tested(store):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    line = run(*TORCHRUN, 2, RANKS / "with_accelerate.py")
    assert float(line.split()[-1]) > 0.85
    (test,) = range_tests(store)
    assert test.data.params["processes"] == "2"
    assert test.data.params["batch_size"] == "64"
    assert test.data.params["optimizer"] == "SGD"


def test_lightning_averages_gradients_in_the_test_as_in_training(store):
    pytest.importorskip("lightning", reason="lightning is not installed")
    for size in (1, 2):
        line = run("python", RANKS / "with_lightning.py", size)
        assert float(line.split()[-1]) > 0.8
    require_alike(store, range_tests(store))


def test_torchrun_starts_a_stage(store):
    run(*TORCHRUN, 2, "-m", "mlflow_project", "lrrt", *store.SMALL, "--experiment", "test")
    (test,) = store.runs("lrrt")
    assert test.info.status == "FINISHED"
    assert test.data.params["processes"] == "2"


OTHER_OPTIONS = """
import os, runpy, sys
sys.argv = ["lrrt-stage", "lrrt"] + (["--seed", "1"] if os.environ["RANK"] == "1" else [])
runpy.run_module("mlflow_project", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lrrt", "--processes", 3), "processes=3, but the launcher has started 2"),
        (("study",), "study runs its tests side by side"),
        (("ranks.py",), "rank 1 has other options 'lrrt --seed 1', not 'lrrt'"),
        (("lrrt", "--rule", "nonsense"), "nonsense"),
    ],
)
def test_what_ranks_cannot_start_with_is_one_line(store, words, message):
    Path("ranks.py").write_text(OTHER_OPTIONS)
    module = () if words == ("ranks.py",) else ("-m", "mlflow_project")
    variables = {"PYTHON_EXEC": str(programs() / "python")}
    command = (*TORCHRUN, 2, *module, *words)
    done = shell(Path.cwd(), *map(str, command), **variables)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert message in line


PROGRAM = """
import sys
from datetime import timedelta
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from mlflow_project import track_range_test
from mlflow_project.stages import on_rank_0

on_rank_0.FAILING = timedelta(seconds=2)
what, bad = sys.argv[1], int(sys.argv[2])
distributed.init_process_group()
rank = distributed.get_rank()
torch.manual_seed(rank if what == "weights" else 0)
model = nn.Linear(4, 2)
if what == "loss":
    model = DistributedDataParallel(model)
batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))] * 5
calls = 0

def loss_fn(output, target):
    global calls
    calls += 1
    if what == "loss" and rank == bad and calls == 20:
        raise ValueError("this rank is bad")
    return nn.functional.cross_entropy(output, target)

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
track_range_test(model, optimizer, loss_fn, batches)
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loss", 0), "ValueError: this rank is bad"),
        (("loss", 1), "ValueError: this rank is bad"),
        (("weights", 1), "LRRTError: rank 1 has other initial weights than rank 0"),
    ],
)
def test_an_error_on_one_rank_of_a_program_ends_all(store, words, message):
    Path("program.py").write_text(PROGRAM)
    variables = {
        "PYTHON_EXEC": str(programs() / "python"),
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
    }
    began = time.monotonic()
    done = shell(Path.cwd(), *TORCHRUN, "2", "program.py", *map(str, words), **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert time.monotonic() - began < 30


def test_help_ends_all_ranks(store):
    variables = {"PYTHON_EXEC": str(programs() / "python")}
    command = (*TORCHRUN, 2, "-m", "mlflow_project", "lrrt", "--help")
    done = shell(Path.cwd(), *map(str, command), **variables)
    assert done.returncode == 0
    assert done.stdout.count("--processes") == 1
