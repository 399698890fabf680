"""What commands import: the prompt answers at once, and a stage pays for what it does alone."""

import builtins
import json
import subprocess
import sys
from importlib import import_module
from pkgutil import resolve_name

import pytest

from lrrt_stage.measure.options import PRECISIONS
from lrrt_stage.measure.step import DTYPES
from mlflow_project.cli.commands import commands
from mlflow_project.cli.failures import OF_THE_MACHINE
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.data.datasets import DATASETS
from pipeline.data.names import AUGMENTATION_NAMES, DATASET_NAMES
from pipeline.studies.options import KINDS

AT_THE_PROMPT = [
    [],
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in commands.commands),
    ["lrt"],
    ["lrrt", "--epocs", "5"],
    ["lrrt", "--iterations", "many"],
    ["lrrt", "--iterations", "3"],
    ["lrrt", "--rule", "robsut"],
    ["lrrt", "--model-args", "{"],
    ["main", "--trials", "0"],
    ["train", "--keep", "first"],
    ["study", "--kind", "initialisations"],
    ["compare"],
]
"""What is answered without any work."""
HEAVY = {
    *("torch", "torchvision", "mlflow", "optuna", "pandas", "scipy", "matplotlib", "sklearn"),
    *("matplotlib.pyplot", "joblib", "safetensors", "sqlalchemy", "alembic", "torch._dynamo"),
    *("lightning", "transformers", "fastai", "skimage", "keras", "pipeline.studies.report"),
}
"""What takes long to import."""
OF_TORCH = {"torch", "safetensors"}
OF_MLFLOW = {"mlflow", "pandas", "scipy", "sqlalchemy"}
"""MLflow imports pandas and scipy; this project imports SQLAlchemy's errors."""
READING = OF_TORCH | OF_MLFLOW
STAGES = {
    "lrrt": READING | {"matplotlib", "joblib"},
    "refine": READING | {"matplotlib", "matplotlib.pyplot", "optuna"},
    "train": READING | {"matplotlib"},
    "main": READING | {"matplotlib", "joblib"},
    "check": READING | {"matplotlib", "joblib"},
    "compare": READING | {"matplotlib"},
    "study": READING | {"matplotlib", "joblib", "pipeline.studies.report"},
}
"""Command -> the heavy modules that its stage may import before it runs."""


def heavy_after(script):
    """The heavy modules that a new process has imported after a script."""
    script = f"import sys\n{script}\nprint(sorted({HEAVY!r} & {{*sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))


@pytest.mark.slow
def test_the_prompt_imports_nothing_heavy():
    script = (
        "from mlflow_project.cli.failures import run_command\n"
        f"for arguments in {AT_THE_PROMPT!r}:\n"
        "    try:\n"
        "        code = run_command(arguments)\n"
        "    except SystemExit as end:\n"  # without arguments
        "        code = end.code\n"
        '    assert code == (0 if arguments[-1:] in (["--help"], ["--version"]) else 2)'
    )
    assert heavy_after(script) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("lrrt_stage", set()),
        ("pipeline", set()),
        ("mlflow_project", set()),
        *((f"mlflow_project.stages.{name}", allowed) for name, allowed in STAGES.items()),
        ("mlflow_project.tracking.kept", OF_MLFLOW),  # of sync
    ],
)
def test_a_module_imports_no_more_than_it_may(module, allowed):
    assert heavy_after(f"import {module}") <= allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("from lrrt_stage import range_test, suggest, confidence", OF_TORCH - {"safetensors"}),
        ("from mlflow_project import load_handoff", READING),
    ],
)
def test_a_public_name_imports_no_more_than_it_may(line, allowed):
    assert heavy_after(line) <= allowed


@pytest.mark.parametrize("package", ["lrrt_stage", "pipeline", "pipeline.data", "mlflow_project"])
def test_every_public_name_is_there(package):
    module = import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_the_names_that_the_help_lists_are_those_of_the_registries():
    assert tuple(DATASETS) == DATASET_NAMES
    assert tuple(AUGMENTATIONS) == AUGMENTATION_NAMES
    assert tuple(DTYPES) == PRECISIONS
    assert all(callable(resolve_name(function)) for function in KINDS.values())


def test_the_errors_that_become_a_line_exist():
    for name in OF_THE_MACHINE:
        module, _, kind = name.rpartition(".")
        found = getattr(builtins if module == "builtins" else import_module(module), kind)
        assert issubclass(found, Exception)
        # Named as Python names it, since it is looked up by that.
        assert f"{found.__module__}.{found.__qualname__}" == name
