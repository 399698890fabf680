"""Stages on two processes: what they compute is what one process does, and an error ends both."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

import mlflow_project.stages.train  # noqa: F401 - a test interrupts it
from lrrt_stage import digest
from lrrt_stage.state import weights
from tests.forked_python import programs
from tests.stores import ROOT, interrupted_after_epoch, search_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.cpu_count() < 2, reason="two processes need two cores"),
]
# The curve of two processes, relative to that of one: they add in a different order, and the
# difference grows where the loss rises.
CLOSE, CLOSE_WHERE_IT_RISES = 1e-4, 1e-2
TWO = ("--processes", 2)
SETUP = """
import os, signal, time
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torch.distributed import is_initialized
from pipeline import Setup

RANK = int(os.environ.get("RANK", 0))
CALLS = 60  # of the model, in the middle of a range test

class Faulty(nn.Module):
    def __init__(self, rank, fault):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.unused, self.sometimes = nn.Linear(2, 2), nn.Linear(4, 4)
        self.rank, self.fault, self.calls = rank, fault, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == CALLS and RANK == self.rank:
            if self.fault == "raise":
                raise ValueError("this rank is bad")
            if self.fault == "hang":  # while somebody presses Ctrl-C
                os.kill(int(os.environ["LRRT_RANK_0"]), signal.SIGINT)
                time.sleep(100)
            os.kill(os.getpid(), getattr(signal, self.fault))
        if self.fault == "skip" and self.calls > 20 and self.calls % 3:  # not in the first steps
            x = x + self.sometimes(x)
        return self.layers(x)

def examples(shift=0.0):
    x = torch.randn(230, 4, generator=torch.Generator().manual_seed(0)) + shift
    return TensorDataset(x, (x.sum(1) > 0).long())

def make(rank=-1, fault="raise", sampler=False, batch=32, other=""):
    model = Faulty(rank, fault)
    if other == "weights":
        nn.init.constant_(model.unused.bias, float(RANK))
    data = examples(RANK if other == "data" else 0)
    val = DataLoader(examples(), 32)
    if sampler and is_initialized():
        loader = DataLoader(data, batch // 2, sampler=DistributedSampler(data, drop_last=True))
        val = DataLoader(examples(), 16, sampler=DistributedSampler(examples(), shuffle=False))
    else:
        loader = DataLoader(data, batch, shuffle=True)
    return Setup(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_batches=loader,
        val_batches=val,
        loss_fn=nn.CrossEntropyLoss(),
        metrics={
            "accuracy": (lambda out, y: (out.argmax(1) == y).float().mean(), "max"),
            "positive": (lambda out, y: y.float().mean(), "max"),
        },
    )
"""


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """No process of a test may be there after it, and no folder by which they find each other."""
    programs()  # which all tests use, in the usual folder
    monkeypatch.setenv("LRRT_TEST", str(os.getpid()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    deadline = time.monotonic() + 10
    while left := list(followers()):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not [*tmp_path.glob("lrrt-ranks-*")]


def followers():
    """The processes below this one, or left by it, that are one of several ranks."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            environment = path.read_bytes().split(b"\0")
            here = f"LRRT_TEST={os.getpid()}".encode()
            if here in environment and any(each.startswith(b"RANK=") for each in environment):
                yield path.parent.name, (path.parent / "cmdline").read_bytes()


@pytest.fixture
def setups(store, tmp_path, monkeypatch):
    (tmp_path / "two_ranks.py").write_text(SETUP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("two_ranks", None)


def losses(store, run, name="train_loss"):
    return np.array(store.history(run, name)[1])


def require_close(found, expected):
    assert len(found) == len(expected)
    assert np.allclose(found[:60], expected[:60], rtol=CLOSE)
    assert np.allclose(found, expected, rtol=CLOSE_WHERE_IT_RISES)


@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_curve_is_that_of_one_process_with_the_same_batches(store, strategy):
    alone = store.one("lrrt")
    store.run("lrrt", *store.SMALL, *TWO, "--strategy", strategy)
    run = store.runs("lrrt")[0]
    require_close(losses(store, run), losses(store, alone))
    assert np.allclose(
        losses(store, run, "probe_loss"), losses(store, alone, "probe_loss"), rtol=CLOSE
    )
    for name in ("suggested_lr_min", "suggested_lr_max"):
        assert run.data.metrics[name] == pytest.approx(alone.data.metrics[name], rel=0.01)
    tag = "lrrt.weights_sha256"
    assert run.data.tags[tag] == alone.data.tags[tag]
    params = run.data.params
    assert (params["processes"], params["strategy"]) == ("2", strategy)
    assert params["batch_size"] == "128"
    assert "processes" not in alone.data.params
    assert not torch.distributed.is_initialized()


@pytest.mark.scale
@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_hand_off_of_one_process_trains_on_two_and_the_reverse(store, strategy):
    two = (*TWO, "--strategy", strategy)
    store.run("train", "--epochs", 3)
    store.run("train", "--epochs", 3, *two)
    store.run("lrrt", *store.SMALL, *two)
    store.run("train", "--epochs", 3)
    reverse, on_two, alone = store.runs("train")
    for run in (on_two, reverse):
        assert run.info.status == "FINISHED"
        assert np.allclose(losses(store, run), losses(store, alone), rtol=1e-3)
        for name in ("val_loss", "val_accuracy"):
            found, expected = (losses(store, each, name) for each in (run, alone))
            assert np.allclose(found, expected, rtol=1e-3)
        assert run.data.metrics["first_loss"] == pytest.approx(
            run.data.metrics["range_test_first_loss"], rel=1e-6
        )
    final = [weights.load(store.file(run, "final_weights.safetensors")) for run in (on_two, alone)]
    assert final[0].keys() == final[1].keys()
    assert all(torch.allclose(final[0][k], final[1][k], atol=1e-4) for k in final[0])
    # The model is logged, and takes what the dataset holds.
    (model,) = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{on_two.info.run_id}'", output_format="list"
    )
    assert model.status == "READY"


@pytest.mark.scale
@pytest.mark.starts_with("lrrt")
@pytest.mark.parametrize(
    ("first", "then"),
    [(TWO, ()), ((), TWO), (TWO, TWO), ((*TWO, "--strategy", "fsdp"), TWO)],
    ids=["2 to 1", "1 to 2", "2 to 2", "fsdp to ddp"],
)
def test_a_training_resumes_with_another_number_of_processes(store, first, then):
    store.run("train", "--epochs", 4, *first)
    whole = store.one("train")
    with interrupted_after_epoch(2):
        store.run("train", "--epochs", 4, *first, code=130)
    interrupted = store.runs("train")[0]
    assert interrupted.info.status == "KILLED"

    store.run("train", "--epochs", 4, *then, "--resume", interrupted.info.run_id)
    resumed = store.runs("train")[0]
    assert resumed.data.tags["lrrt.resumed_run_id"] == interrupted.info.run_id
    # It is reused as the same training only if it is.
    assert ("lrrt.fingerprint" in resumed.data.tags) == (first == then)
    found, expected = (losses(store, each) for each in (resumed, whole))
    assert np.allclose(found, expected, rtol=1e-3)
    if first == then:
        files = [store.file(run, "final_weights.safetensors") for run in (whole, resumed)]
        assert digest(weights.load(files[0])) == digest(weights.load(files[1]))


@pytest.mark.scale
@pytest.mark.starts_with("lrrt")
def test_main_goes_on_after_an_interruption(store):
    main = ("main", *store.SMALL, "--epochs", 3)
    with interrupted_after_epoch(2):
        assert "--reuse true" in store.run(*main, *TWO, code=130).err
    store.run(*main, *TWO, "--reuse", "true")
    train, interrupted = store.runs("train")
    assert train.data.tags["lrrt.resumed_run_id"] == interrupted.info.run_id


@pytest.mark.scale
@pytest.mark.starts_with("lrrt")
def test_a_search_on_two_processes_prunes_on_both(store):
    search = ("refine", "--trials", 6, "--trial-epochs", 4)
    store.run(*search, "--study-name", "alone")
    store.run(*search, "--study-name", "two", *TWO)
    two, alone = store.runs("refine")
    ended = [
        {(t.data.params["trial"], t.data.tags["lrrt.trial_state"]) for t in store.children(each)}
        for each in (two, alone)
    ]
    assert ended[0] == ended[1]
    assert "pruned" in {state for _, state in ended[0]}
    assert two.data.metrics["refined_lr_max"] == pytest.approx(
        alone.data.metrics["refined_lr_max"], rel=0.01
    )


@pytest.mark.scale
def test_batch_norm_is_that_of_each_process(store):
    """The part of a batch has other statistics: said in the help of sync_batchnorm."""
    cnn = ("lrrt", "--batch-size", 128, "--device", "cpu")
    store.run(*cnn)
    store.run(*cnn, *TWO)
    two, alone = (losses(store, run) for run in store.runs("lrrt"))
    assert 1e-4 < abs(two[0] / alone[0] - 1) < 0.05
    outcome = store.run(*cnn, *TWO, "--sync-batchnorm", "true", code=2)
    outcome.names("sync_batchnorm=true", "GPUs", "cpu")


@pytest.mark.scale
class TestSetups:
    """A setup of the user's: its batches are divided, or come from a sampler for ranks."""

    def test_its_batches_are_divided_also_where_they_are_shuffled(self, store, setups):
        lrrt = ("lrrt", "--setup", "two_ranks:make", "--device", "cpu")
        lrrt = (*lrrt, "--setup-args", '{"fault": "skip"}')  # some steps leave out a layer
        store.run(*lrrt)
        store.run(*lrrt, *TWO)
        two, alone = store.runs("lrrt")
        # 230 examples in batches of 32: the last batch is of 6. A test takes 14 epochs.
        require_close(losses(store, two), losses(store, alone))
        store.run("train", *lrrt[1:], "--epochs", 2, *TWO)
        train = store.one("train")
        assert train.info.status == "FINISHED"
        assert 0.5 < train.data.metrics["val_accuracy"] <= 1

    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_each_rank_has_its_own_examples_from_a_sampler(self, store, setups, strategy):
        sampled = ("--setup", "two_ranks:make", "--setup-args", '{"sampler": true}')
        two = (*sampled, "--device", "cpu", *TWO, "--strategy", strategy)
        train = ("train", "--epochs", 3, *two)
        store.run("lrrt", *two)
        store.run(*train)
        with interrupted_after_epoch(2):
            store.run(*train, code=130)
        store.run(*train, "--resume", store.runs("train")[0].info.run_id)
        resumed, _, whole = store.runs("train")
        y = torch.randn(230, 4, generator=torch.Generator().manual_seed(0)).sum(1) > 0
        assert whole.data.metrics["val_positive"] == pytest.approx(float(y.float().mean()))
        files = [store.file(run, "final_weights.safetensors") for run in (whole, resumed)]
        assert digest(weights.load(files[0])) == digest(weights.load(files[1]))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ('{"batch": 31}', ("a batch of the setup=31", "30 or 32")),
            ('{"other": "data"}', ("rank 1", "other data")),
        ],
    )
    def test_ranks_that_cannot_go_together_are_refused(self, store, setups, arguments, words):
        setup = ("--setup", "two_ranks:make", "--setup-args", arguments)
        outcome = store.run("lrrt", *setup, "--device", "cpu", *TWO, code=2)
        outcome.names(*words)
        assert store.one("lrrt").info.status == "FAILED"

    def test_weights_of_the_setup_on_rank_0_are_those_of_all(self, store, setups):
        """They are drawn once, and sent."""
        setup = ("--setup", "two_ranks:make", "--setup-args", '{"other": "weights"}')
        store.run("lrrt", *setup, "--device", "cpu", *TWO)
        assert store.one("lrrt").info.status == "FINISHED"

    @pytest.mark.parametrize(
        ("rank", "fault", "code"),
        [
            *((0, "raise", 2), (0, "SIGINT", 130), (0, "SIGTERM", 130)),
            (0, "SIGKILL", -signal.SIGKILL),
            *((1, "raise", 2), (1, "SIGINT", 130), (1, "SIGTERM", 130), (1, "SIGKILL", 2)),
            (1, "hang", 130),
        ],
    )
    def test_a_fault_of_one_rank_ends_both_with_one_line(self, store, setups, rank, fault, code):
        arguments = f'{{"rank": {rank}, "fault": "{fault}"}}'
        began = time.monotonic()
        done = subprocess.run(
            ["lrrt-stage", "lrrt", "--setup", "two_ranks:make", "--setup-args", arguments, *map(
                str, TWO
            ), "--device", "cpu"],
            env={
                **os.environ,
                "PATH": search_path(),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), "."]),
                "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
                "MLFLOW_EXPERIMENT_NAME": "test",
            },
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert time.monotonic() - began < 40
        if code < 0:
            return
        (line,) = filter(None, done.stderr.splitlines())
        if rank == 1 and fault != "hang":
            assert "rank 1" in line
        if fault == "raise":
            assert "this rank is bad" in line
        run = store.one("lrrt")
        assert run.info.status == ("FAILED" if code == 2 else "KILLED")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--processes", 1000), ("processes=1000", "cores", "torchrun")),
        ((*TWO, "--batch-size", 65), ("batch_size=65", "64 or 66")),
        ((*TWO, "--device", "cpu:0"), ("device='cpu:0'", "one device")),
        ((*TWO, "--tests", 3), ("tests=3", "processes=1")),
        ((*TWO, "--strategy", "fsdp", "--precision", "fp16"), ("fp16", "bf16")),
        ((*TWO, "--strategy", "fsdp", "--optimizer", "adafactor"), ("pow_", "strategy=ddp")),
        ((*TWO, "--strategy", "zero"), ("zero", "ddp", "fsdp")),
        ((*TWO, "--model", "resnet9"), ("resnet9",)),
    ],
)
def test_what_cannot_run_on_two_processes_is_refused_with_one_line(store, options, words):
    store.run("lrrt", *options, code=2).names(*words)
    assert all(run.info.status == "FAILED" for run in store.runs())


@pytest.mark.scale
def test_fsdp_gathers_one_block_after_the_other(store):
    """With a model whose blocks are in sequences, as most are."""
    task = ("--model", "resnet20", "--batch-size", 32)
    task = (*task, "--device", "cpu", "--iterations", 12, "--lr-end", 1e-4, "--rule", "valley")
    for strategy in ("ddp", "fsdp"):
        store.run("lrrt", *task, *TWO, "--strategy", strategy, code=2)  # nothing is learned yet
    fsdp, ddp = (losses(store, run) for run in store.runs("lrrt"))
    assert np.allclose(fsdp, ddp, rtol=CLOSE)


@pytest.mark.scale
@pytest.mark.parametrize("arguments", ['{"reduction": "sum"}', '{"ignore_index": 3}'])
def test_a_loss_that_is_no_mean_is_warned_of(store, arguments):
    loss = ("--loss", "CrossEntropyLoss", "--loss-args", arguments)
    with pytest.warns(UserWarning, match="not the mean of those of its parts"):
        store.run("lrrt", *store.SMALL, *loss, *TWO)


@pytest.mark.scale
@pytest.mark.parametrize(
    "options",
    [
        ("--accumulate", 2, "--clip-norm", 0.5, "--optimizer", "adamw"),
        ("--dataset", "diabetes", "--batch-size", 32, "--l2", 0.01),
        ("--precision", "bf16", "--iterations", "epoch", "--validation", "sample"),
    ],
)
def test_steps_of_any_kind_are_those_of_one_process(store, options):
    task = ("lrrt", *store.SMALL, *options)
    store.run(*task)
    store.run(*task, *TWO)
    two, alone = (losses(store, run) for run in store.runs("lrrt"))
    length = min(len(two), len(alone), 60)
    tolerance = 1e-2 if "bf16" in options else 1e-3
    assert np.allclose(two[:length], alone[:length], rtol=tolerance)


@pytest.mark.scale
def test_the_squares_of_weights_count_once_with_fsdp(store):
    for strategy in ("ddp", "fsdp"):
        store.run("lrrt", *store.SMALL, "--l2", 0.1, *TWO, "--strategy", strategy)
    fsdp, ddp = (losses(store, run) for run in store.runs("lrrt"))
    require_close(fsdp, ddp)


def test_studies_have_no_processes(store):
    store.run("study", *TWO, code=2).names("--processes")
