"""What only shows after hundreds of times: ``make soak`` runs it, ``make test`` does not."""

import gc
import os
import random
import resource
import signal
import statistics
import time
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

from lrrt_stage import range_test
from mlflow_project import track_range_test
from tests.mlflow_project.stages.test_killed import holder, kept, start

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "soak", reason="see make soak"),
]
TESTS, RUNS, KILLS = 200, 1000, 100
SEED = 0


def objects():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 10))
    inputs = [torch.randn(32, 1, 8, 8) for _ in range(4)]
    batches = [(each, each.flatten(1)[:, :10].argmax(dim=1)) for each in inputs]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, nn.CrossEntropyLoss(), batches


def in_use():
    """Megabytes of memory, and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20, len(os.listdir("/proc/self/fd"))


def test_memory_and_files_stay_the_same_over_many_range_tests(record_property):
    model, optimizer, loss_fn, batches = objects()
    used = []
    for _ in range(TESTS):
        range_test(model, optimizer, loss_fn, batches, probe=batches[0])
        used.append(in_use())
    early, late = used[TESTS // 10], used[-1]
    print(f"{TESTS} range tests: {early[0]:.1f} to {late[0]:.1f} MB, {early[1]} to {late[1]} files")
    assert late[0] < early[0] + 5
    assert late[1] == early[1]


def test_a_run_takes_as_long_in_a_store_of_a_thousand(store):
    seconds, used = [], []
    for _ in range(RUNS):
        began = time.process_time()  # the other tests of `make soak` run beside this one
        track_range_test(*objects(), iterations=40, lr_start=1e-5, probe=None)
        seconds.append(time.process_time() - began)
        used.append(in_use())
    tenth = RUNS // 10
    early, late = map(statistics.median, (seconds[tenth : 2 * tenth], seconds[-tenth:]))
    memory = f"{used[tenth][0]:.0f} to {used[-1][0]:.0f} MB"
    print(f"{RUNS} runs: {early:.3f} to {late:.3f} CPU seconds each, {memory}")
    assert late < 1.5 * early
    assert used[-1][1] <= used[tenth][1] + 2
    assert kept() == []


def test_a_chain_that_is_killed_at_any_time_ends_in_the_same_weights(store):
    """Every kill is one of a chain that the same command then continues, until it is done."""
    chain = ("main", *store.SMALL, "--epochs", 30, "--iterations", 60)
    began = time.perf_counter()
    store.run(*chain)
    seconds = time.perf_counter() - began
    expected = {store.one("train").data.tags["lrrt.final_weights_sha256"]}
    chance, kills, seed = random.Random(SEED), 0, 0
    while kills < KILLS:
        seed += 1
        options = (*chain, "--data-seed", seed, "--reuse", "true")
        while True:
            command = start(*options)
            time.sleep(chance.uniform(0.1, seconds))
            if command.poll() is None:
                for lock in Path(".lrrt").glob("*/lock"):
                    if (number := holder(lock)) is not None:
                        os.kill(number, signal.SIGKILL)
                        kills += 1
                        break
            _, err = command.communicate(timeout=120)
            assert "Traceback" not in err
            if command.returncode == 0:
                break
        store.run(*chain, "--data-seed", seed)
        resumed, whole = (
            mlflow.get_run(run.data.tags["lrrt.train_run_id"])
            for run in [r for r in store.runs("main") if r.info.status == "FINISHED"][1::-1]
        )
        final = [run.data.tags["lrrt.final_weights_sha256"] for run in (resumed, whole)]
        assert final[0] == final[1]
        expected.add(final[0])
    running = [run for run in store.runs() if run.info.status == "RUNNING"]
    print(f"{kills} kills of {seed} chains, all with the weights of an undisturbed one")
    assert running == []
