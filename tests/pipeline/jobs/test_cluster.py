"""What is asked of Ray, and what becomes of its errors: with a stand-in, which needs no cluster."""

from __future__ import annotations

import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest

from lrrt_stage import LRRTError
from pipeline.jobs import cluster
from pipeline.jobs.cluster import QUIET, results_on_ray
from pipeline.jobs.jobs import FailedJob


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    pass


class LocalRayletDiedError(RayError):
    pass


class RayTaskError(RayError):
    """As Ray's, its text is the traceback of the worker."""

    def __init__(self, cause):
        super().__init__(f"ray::_run() (pid=1)\n  File ...\n{cause}")
        self.cause = cause


class StandIn(ModuleType):
    """A cluster with one core, which runs a task when its result is asked for."""

    def __init__(self):
        super().__init__("ray")
        self.asked, self.ended = [], 0
        self.resources = {"CPU": 1.0}
        self.exceptions = SimpleNamespace(RayError=RayError)

    def init(self, **options):
        self.asked.append(options["address"])
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    def shutdown(self):
        self.ended += 1

    def cluster_resources(self):
        return self.resources

    def put(self, value):
        return value

    def remote(self, function):
        def task(placed, data):
            return lambda: (placed[0], placed[1])

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=task))

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        return reference()


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", stand_in := StandIn())
    before = signal.getsignal(signal.SIGTERM)
    yield stand_in
    signal.signal(signal.SIGTERM, before)


def results(count=1, backend="ray", gpus=0.0):
    placed = [(index, f"job {index}", None) for index in range(count)]
    return results_on_ray(placed, backend, None, gpus, None)


def raises(error):
    def function(*_, **__):
        raise error

    return function


def test_a_signal_is_answered_as_without_ray(ray):
    before = signal.getsignal(signal.SIGTERM)
    found = results(2)
    next(found)
    assert signal.getsignal(signal.SIGTERM) is before
    found.close()
    assert ray.ended == 1


def test_a_signal_while_ray_starts_is_an_interruption(ray, monkeypatch):
    monkeypatch.setattr(ray, "init", raises(SystemExit(15)))
    with pytest.raises(KeyboardInterrupt):
        next(results())
    assert ray.ended == 1


def test_the_environment_is_as_before(ray, monkeypatch):
    given, *others = QUIET
    monkeypatch.setenv(given, "1")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    found = results(2)
    next(found)
    assert [os.environ[name] for name in QUIET] == ["1", *(QUIET[name] for name in others)]
    found.close()
    assert [os.environ.get(name) for name in QUIET] == ["1", *(None for _ in others)]


LOST = ConnectionError("gone\nmore")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(("cluster_resources", LOST), ("put", LOST), ("wait", LOST), ("get", LOST)),
        *(("put", RayError("gone")), ("wait", RayError("gone"))),
    ],
)
def test_a_cluster_that_is_lost_is_told_in_one_line(ray, monkeypatch, name, error):
    monkeypatch.setattr(ray, name, raises(error))
    with pytest.raises(LRRTError) as told:
        list(results())
    assert str(told.value) == (
        "Ray cluster local was lost (gone): start it, and give the same command again"
    )
    assert ray.ended == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *(
            (kind("gone"), "its worker was ended 3 times, perhaps for want of memory")
            for kind in (WorkerCrashedError, LocalRayletDiedError)
        ),
        (
            RayTaskError(ModuleNotFoundError("No module named 'mine'")),
            "its worker could not run it (ModuleNotFoundError: No module named 'mine')",
        ),
        (RayError("no place"), "its worker could not run it (RayError: no place)"),
    ],
)
def test_a_job_without_a_result_has_its_own_reason(ray, monkeypatch, error, reason):
    monkeypatch.setattr(ray, "get", raises(error))
    ((index, failed),) = results()
    assert (index, type(failed)) == (0, FailedJob)
    assert failed.reason.startswith(reason)


@pytest.mark.parametrize(
    ("resources", "gpus", "message"),
    [
        ({}, 0.0, "Ray cluster local has 0 cores, and each test takes one: add some"),
        ({"CPU": 2.0}, 0.5, "gpus_per_test=0.5, but Ray cluster local has 0 GPUs"),
    ],
)
def test_a_cluster_without_room_for_a_test_is_refused(ray, resources, gpus, message):
    ray.resources = resources
    with pytest.raises(LRRTError, match=message):
        next(results(gpus=gpus))
    assert ray.ended == 1


@pytest.mark.parametrize("variable", ["", "local"])
def test_without_an_address_a_cluster_is_started(ray, monkeypatch, variable):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert list(results()) == [(0, "job 0")]
    assert ray.asked == ["local"]


@pytest.mark.parametrize(
    "variable", ["ray://127.0.0.1", "127.0.0.1", "host:port", "ray://h:123456"]
)
def test_an_address_that_is_none_is_refused(ray, monkeypatch, variable):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(LRRTError, match=f"RAY_ADDRESS='{variable}' is not known: give HOST:PORT"):
        next(results())
    assert ray.asked == []


def test_a_cluster_of_this_machine_that_has_ended_is_not_waited_for(ray, monkeypatch):
    services = SimpleNamespace(canonicalize_bootstrap_address=lambda address: "127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray._private", SimpleNamespace(services=services))
    monkeypatch.setitem(sys.modules, "ray._private.services", services)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(LRRTError, match="Ray cluster 127.0.0.1:1 cannot be reached"):
        next(results())
    assert ray.asked == []
    services.canonicalize_bootstrap_address = raises(ConnectionError("none runs"))
    monkeypatch.setattr(ray, "init", raises(ConnectionError("none runs")))
    with pytest.raises(LRRTError, match=r"Ray cluster auto cannot be used \(none runs\)"):
        next(results())


def test_a_cluster_that_has_just_started_is_tried_again(ray, monkeypatch):
    errors = [ConnectionAbortedError("not yet")]
    init = ray.init
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0)
    monkeypatch.setattr(
        ray, "init", lambda **options: raises(errors.pop())() if errors else init(**options)
    )
    assert list(results()) == [(0, "job 0")]
    monkeypatch.setattr(ray, "init", raises(ValueError("other version")))
    with pytest.raises(LRRTError, match=r"local cannot be used \(other version\): start it"):
        next(results())


def test_a_worker_that_did_not_get_the_data_asks_again(ray, monkeypatch):
    monkeypatch.setattr(cluster, "_received", [])
    monkeypatch.setattr(cluster, "run_placed", lambda placed: placed)
    used = []
    data = SimpleNamespace(use=lambda: used.append("data"))
    answers = [raises(OSError("lost")), lambda _: data]
    monkeypatch.setattr(ray, "get", lambda reference: answers.pop(0)(reference))
    with pytest.raises(OSError, match="lost"):
        cluster._run("placed", ["reference"])
    assert [cluster._run("placed", ["reference"]) for _ in range(2)] == ["placed"] * 2
    assert used == ["data"]


def test_the_errors_of_ray_are_as_those_of_the_stand_in(monkeypatch):
    # Ray reads it when it is imported, and the tests of a cluster need it.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    exceptions = pytest.importorskip(
        "ray.exceptions", reason="Ray is not installed: pip install 'lrrt-stage[ray]'"
    )
    for name in cluster.ENDED:
        assert issubclass(getattr(exceptions, name), exceptions.RayError)
    cause = ModuleNotFoundError("No module named 'mine'")
    raised = exceptions.RayTaskError("_run", "traceback", cause).as_instanceof_cause()
    assert isinstance(raised, exceptions.RayError)
    assert cluster._reason(raised).endswith("(ModuleNotFoundError: No module named 'mine')")
