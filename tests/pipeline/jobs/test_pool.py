from __future__ import annotations

import sys
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from lrrt_stage import LRRange, RangeTestOptions
from pipeline import RangeTestPlan, Runtime, Task, TrainOptions
from pipeline.jobs import pool
from pipeline.jobs.jobs import FailedJob, RangeTestJob, RangeTestResult, TrainingJob
from pipeline.jobs.pool import run_jobs
from pipeline.task.prepared import PreparedTask

CPU = Runtime(device="cpu")
TASK = Task(model="mlp", model_args={"width": 16}, batch_size=32)
PLAN = RangeTestPlan(RangeTestOptions(iterations=40))


def range_tests(count, **changes):
    return [
        RangeTestJob(f"seed {seed}", replace(TASK, seed=seed, **changes), PLAN)
        for seed in range(count)
    ]


def test_results_do_not_depend_on_the_number_of_workers():
    training = TrainingJob("short", TASK, LRRange(0.01, 0.1), TrainOptions(epochs=1))
    jobs = [*range_tests(3), training]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # what a job computes with must not be this
    alone, together = run_jobs(jobs, CPU, workers=1), run_jobs(jobs, CPU, workers=2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert [each.job.name for each in together] == ["seed 0", "seed 1", "seed 2", "short"]
    for a, b in zip(alone[:3], together[:3], strict=True):
        assert a.curve == b.curve
        assert a.range == b.range
        assert all(torch.equal(v, b.weights[k]) for k, v in a.weights.items())
    assert alone[3].history == together[3].history
    assert len({each.curve.loss[0] for each in alone[:3]}) == 3


def loaded_by(job: RangeTestJob) -> tuple[bool, bool]:
    """Run a job, and return whether its process has imported what reads the digits."""
    result = job.run(CPU)
    assert isinstance(result, RangeTestResult)
    return "sklearn" in sys.modules, "pandas" in sys.modules


def test_processes_get_the_data_and_load_nothing(monkeypatch):
    prepared = PreparedTask(TASK, CPU)
    monkeypatch.setattr(pool, "run_placed", lambda placed: (placed[0], loaded_by(placed[1])))
    # Not those of another test, which may have loaded them.
    get_reusable_executor().shutdown(wait=True)
    assert run_jobs(range_tests(2), CPU, 2, prepared=prepared) == [(False, False)] * 2


def test_data_that_is_there_is_not_loaded_again(monkeypatch):
    prepared = PreparedTask(TASK, CPU)
    expected = run_jobs(range_tests(1), CPU, workers=1)
    monkeypatch.setattr("pipeline.jobs.jobs._loaded", {})
    monkeypatch.setattr("pipeline.jobs.jobs.load_data", None)
    (found,) = run_jobs(range_tests(1), CPU, 1, prepared=prepared)
    assert found.curve == expected[0].curve


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_is_told_in_one_line_and_the_others_go_on(workers):
    jobs = range_tests(3)
    jobs[1] = replace(jobs[1], task=replace(TASK, model="no_such_model"))
    seen = []
    results = run_jobs(jobs, CPU, workers, seen.append)
    kinds = [RangeTestResult, FailedJob, RangeTestResult]
    assert [type(result) for result in results] == kinds
    assert "unknown model 'no_such_model'" in results[1].reason
    assert "\n" not in results[1].reason
    assert sorted(each.job.name for each in seen) == [each.job.name for each in results]
    assert all(any(each is result for each in seen) for result in results)


def test_a_job_that_ends_its_worker_fails_alone():
    ends_its_process = {"dataset": "os:_exit", "dataset_args": {"status": 1}}
    jobs = range_tests(4)
    jobs[1] = replace(jobs[1], task=replace(TASK, **ends_its_process))
    seen = []
    results = run_jobs(jobs, CPU, 2, seen.append)
    kinds = [type(result) for result in results]
    assert kinds == [RangeTestResult, FailedJob, RangeTestResult, RangeTestResult]
    assert results[1].reason == "its worker was ended 3 times, perhaps for want of memory"
    assert sorted(each.job.name for each in seen) == [each.name for each in jobs]
    assert results[2].curve == run_jobs(jobs[2:3], CPU, workers=1)[0].curve


def test_another_backend_of_joblib_can_be_plugged_in():
    jobs = range_tests(2)
    with joblib.parallel_config(backend="threading"):
        threaded = run_jobs(jobs, CPU, workers=2)
    expected = run_jobs(jobs, CPU, workers=1)
    assert [np.isfinite(each.curve.loss[0]) for each in threaded] == [True, True]
    assert threaded[0].curve.lr.tolist() == expected[0].curve.lr.tolist()


@pytest.mark.parametrize(
    ("name", "devices"),
    [("auto", ["cuda:0", "cuda:1"]), ("cuda", ["cuda:0", "cuda:1"]), ("cuda:1", ["cuda:1"])],
)
def test_jobs_are_spread_over_all_gpus_unless_one_is_named(monkeypatch, name, devices):
    index = 0 if name in ("auto", "cuda") else 1
    monkeypatch.setattr(pool, "resolve_device", lambda _: torch.device("cuda", index))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pool._devices(name) == devices


def test_no_job_is_no_work():
    assert run_jobs([], CPU) == []
