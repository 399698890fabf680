"""Jobs on a Ray cluster of this machine, which the tests start and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib import util
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from lrrt_stage import LRRTError, RangeTestOptions
from pipeline import RangeTestPlan, Runtime, Task
from pipeline.jobs import pool
from pipeline.jobs.jobs import FailedJob, RangeTestJob, RangeTestResult
from pipeline.jobs.options import PoolOptions
from pipeline.jobs.pool import run_jobs
from pipeline.studies.options import StudyOptions
from pipeline.task.prepared import PreparedTask
from tests.stores import ROOT

on_a_cluster = [
    pytest.mark.scale,
    pytest.mark.skipif(
        util.find_spec("ray") is None, reason="Ray is not installed: pip install 'lrrt-stage[ray]'"
    ),
]
CPU = Runtime(device="cpu")
TASK = Task(model="mlp", model_args={"width": 16}, batch_size=32)
PLAN = RangeTestPlan(RangeTestOptions(iterations=40))
# Notes every time that the data is loaded; ends its process so many times.
DATA = """
import os
from pathlib import Path
import torch

def data(folder, deaths=0):
    loads = Path(folder, "loads")
    count = len(loads.read_text()) if loads.exists() else 0
    with loads.open("a") as file:
        file.write("x")
    if count < deaths:
        os.kill(os.getpid(), 9)
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    return (x, (x.sum(1) > 0).long()), (x[:64], (x[:64].sum(1) > 0).long())
"""


def range_tests(count, task=TASK):
    return [RangeTestJob(f"seed {seed}", replace(task, seed=seed), PLAN) for seed in range(count)]


def processes_of(mark):
    """Those that a test has started, wherever they are now."""
    here = f"LRRT_TEST={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if path.parent.name != str(os.getpid()) and here in path.read_bytes().split(b"\0"):
                yield path.parent.name, (path.parent / "cmdline").read_bytes()[:200]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    mark = uuid4().hex
    monkeypatch.setenv("LRRT_TEST", mark)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Those of joblib are there for the next test.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ray_data.py").write_text(DATA)
    yield
    sys.modules.pop("ray_data", None)
    wait_for_the_end_of(mark)


def wait_for_the_end_of(mark):
    deadline = time.monotonic() + 20
    while left := list(processes_of(mark)):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def own(tmp_path, **arguments):
    arguments = {"folder": str(tmp_path), **arguments}
    return replace(TASK, dataset="ray_data:data", dataset_args=arguments)


class TestOnACluster:
    pytestmark = on_a_cluster

    @pytest.mark.parametrize("by", ["its address", "rays client"])
    def test_results_are_those_of_this_process_and_the_data_is_sent_once(
        self, tmp_path, monkeypatch, shared_cluster, by
    ):
        import ray

        address, client = shared_cluster
        backend = client if by == "rays client" else "ray"
        # Without the token that Ray then makes, nobody else uses the cluster.
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_ADDRESS", "" if by == "rays client" else address)
        task = own(tmp_path)
        prepared = PreparedTask(task, CPU)
        jobs = range_tests(4, task)
        expected = run_jobs(jobs, CPU, 1, prepared=prepared)
        loads = (tmp_path / "loads").read_text()
        sent = []
        put = ray.put
        monkeypatch.setattr(ray, "put", lambda value: sent.append(value) or put(value))
        seen = []
        found = run_jobs(jobs, CPU, 2, seen.append, prepared, backend=backend)
        assert [each.job.name for each in found] == [job.name for job in jobs]
        assert sorted(each.job.name for each in seen) == [job.name for job in jobs]
        for here, there in zip(expected, found, strict=True):
            assert here.curve == there.curve
            assert here.range == there.range
            assert all(torch.equal(v, there.weights[k]) for k, v in here.weights.items())
        assert len(sent) == 1
        assert (tmp_path / "loads").read_text() == loads

    def test_a_worker_that_is_killed_costs_its_test_only(self, tmp_path):
        folders = tmp_path / "once", tmp_path / "always"
        jobs = range_tests(4)
        for index, (folder, deaths) in enumerate(zip(folders, (1, 99), strict=True)):
            folder.mkdir()
            jobs[index] = replace(jobs[index], task=own(folder, deaths=deaths))
        results = run_jobs(jobs, CPU, 2, backend="ray")
        kinds = [RangeTestResult, FailedJob, RangeTestResult, RangeTestResult]
        assert [type(each) for each in results] == kinds
        assert "its worker was ended 3 times" in results[1].reason
        assert [len((folder / "loads").read_text()) for folder in folders] == [2, 3]

    def test_a_signal_is_an_interruption_which_ends_the_cluster(self):
        def interrupt(number, frame):
            raise KeyboardInterrupt

        def terminate(_):
            signal.raise_signal(signal.SIGTERM)

        began = time.monotonic()
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_jobs(range_tests(30), CPU, 2, terminate, backend="ray")
            assert signal.getsignal(signal.SIGTERM) is interrupt
        finally:
            signal.signal(signal.SIGTERM, before)
        assert time.monotonic() - began < 40


class cluster:
    """A cluster of one node on this machine, as an administrator starts it."""

    def __enter__(self):
        from ray.util import get_node_ip_address

        here, ports = get_node_ip_address(), []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        self.process = subprocess.Popen(
            [
                *(Path(sys.executable).parent / "ray", "start", "--head", "--block"),
                *("--port", str(ports[0]), "--ray-client-server-port", str(ports[1])),
                *("--num-cpus", "2"),
                *("--include-dashboard", "false", "--disable-usage-stats"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = iter(self.process.stdout.readline, "")
        assert any("Ray runtime started" in line for line in told)
        for port in ports:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError):
                    socket.create_connection((here, port), 1).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.2)
        return f"{here}:{ports[0]}", f"ray://{here}:{ports[1]}"

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def shared_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRRT_TEST", mark := uuid4().hex)
        patch.setenv("RAY_AUTH_MODE", "token")
        with cluster() as addresses:
            yield addresses
        wait_for_the_end_of(mark)


@pytest.mark.skipif(util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_that_cannot_be_reached_is_named_within_seconds(monkeypatch):
    began = time.monotonic()
    with pytest.raises(LRRTError, match="ray://127.0.0.1:1 cannot be reached .*backend"):
        run_jobs(range_tests(1), CPU, backend="ray://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(LRRTError, match="127.0.0.1:1 cannot be reached .*RAY_ADDRESS"):
        run_jobs(range_tests(1), CPU, backend="ray")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "spark"}, "backend='spark' is not known: give ray"),
        ({"backend": "ray://nowhere"}, "backend='ray://nowhere' is not known"),
        ({"backend": "ray://here:100000"}, "backend='ray://here:100000' is not known"),
        ({"gpus_per_test": 0}, "gpus_per_test=0"),
        ({"gpus_per_test": 2}, "gpus_per_test=2"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    for kind in (PoolOptions, StudyOptions):
        with pytest.raises(LRRTError, match=message):
            kind(**options)


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("pipeline.jobs.options.find_spec", lambda name: None)
    with pytest.raises(LRRTError, match=r"not installed: pip install 'lrrt-stage\[ray\]'"):
        PoolOptions(backend="ray")
    assert PoolOptions().backend is None


def test_a_part_of_a_gpu_on_a_cpu_is_refused():
    with pytest.raises(LRRTError, match="gpus_per_test=0.25, and the tests run on cpu"):
        run_jobs(range_tests(1), CPU, gpus_per_test=0.25)


@pytest.mark.parametrize(("share", "on_ray", "here"), [(None, 1.0, 2), (0.25, 0.25, 8)])
def test_tests_share_a_gpu_as_the_option_says(monkeypatch, share, on_ray, here):
    """What Ray and joblib are asked for: no GPU is needed to see that."""
    asked = []

    def record(placed, *arguments):
        asked.append((placed, *arguments))
        yield from ((index, FailedJob(job, "")) for index, job, _ in placed)

    monkeypatch.setattr(pool, "_devices", lambda name: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(pool, "results_on_ray", record)
    monkeypatch.setattr(pool, "_results", record)
    run_jobs(range_tests(20), Runtime(), backend="ray", gpus_per_test=share)
    run_jobs(range_tests(20), Runtime(), gpus_per_test=share)
    (placed, backend, workers, gpus, _), (beside, count, _) = asked
    assert (backend, workers, gpus, count) == ("ray", None, on_ray, here)
    assert {runtime.device for _, _, runtime in placed} == {"cuda"}
    assert [runtime.device for _, _, runtime in beside[:3]] == ["cuda:0", "cuda:1", "cuda:0"]
