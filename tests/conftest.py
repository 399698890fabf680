"""One thread per process: tests run side by side, and repeat on machines of any size."""

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# Property tests: the same examples at every run, or `HYPOTHESIS_PROFILE=soak` for many new ones.
settings.register_profile(
    "default", max_examples=200, deadline=None, derandomize=True, database=None
)
settings.register_profile("soak", max_examples=5_000, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items):
    without = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without)
    # What takes long first: then the workers end together.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def template(tmp_path_factory, worker_id):
    """The stores of ``tests/stores.py``, which the workers of a test run share."""
    from tests.stores import Templates  # imports MLflow, which most tests do not need

    shared = tmp_path_factory.getbasetemp()
    return Templates((shared if worker_id == "master" else shared.parent) / "stores")


@pytest.fixture
def store(request, tmp_path, monkeypatch, capfd, template):
    """A store of the test's own; the marker ``starts_with`` names the one that it is a copy of.

    Commands are abridged, unless the test has the marker ``unabridged``.
    """
    import mlflow

    from tests.forked_python import programs
    from tests.stores import Store, abridge

    # Workers of joblib start without their imports.
    monkeypatch.setattr(sys, "executable", str(programs() / "python"))
    marker = request.node.get_closest_marker("starts_with")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    for variable in ("LRRT_WORK_DIR", "LRRT_REQUIRE_SIGNATURE"):  # which options of commands set
        monkeypatch.setenv(variable, "")
    template.enter(marker.args[0] if marker else "empty", tmp_path, monkeypatch)
    if request.node.get_closest_marker("unabridged") is None:
        abridge(monkeypatch)
    capfd.readouterr()
    yield Store(capfd)
    assert mlflow.active_run() is None


@pytest.fixture(scope="session")
def keras_model(tmp_path_factory):
    """The module ``examples.keras_model``; Keras writes its settings into a temporary folder."""
    if find_spec("keras") is None:
        pytest.skip(
            "keras is not installed: pip install 'lrrt-stage[keras]' (Python 3.11 or later)"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        patch.syspath_prepend(Path(__file__).parents[1])
        yield importlib.import_module("examples.keras_model")
