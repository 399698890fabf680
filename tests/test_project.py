"""What the project promises of itself: one place per default, one direction of imports."""

import ast
import graphlib
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement

from mlflow_project.cli.commands import commands
from pipeline.task.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))
FRAMEWORKS = {"keras", "lightning", "pytorch_lightning", "fastai", "transformers", "accelerate"}
# Whose errors the commands turn into a line.
FAILING = ("safetensors", "sqlalchemy")
# A room -> the rooms that it may import, and the packages. A package's name stands for its rooms.
ROOMS = {
    "lrrt_stage.secrets": ((), ()),
    "lrrt_stage.errors": (("secrets",), ()),
    "lrrt_stage.files": (("errors",), ()),
    "lrrt_stage.settings": (("errors", "secrets"), ()),
    "lrrt_stage.curve": (("errors", "files", "settings"), ("numpy", "pandas")),
    "lrrt_stage.state": (("errors", "files", "settings"), ("numpy", "safetensors", "torch")),
    "lrrt_stage.measure": (("errors", "settings", "curve", "state"), ("numpy", "torch")),
    "lrrt_stage.rules": (("errors", "settings", "curve"), ("numpy", "pandas", "scipy")),
    "lrrt_stage.guard": (
        ("errors", "settings", "curve", "rules", "measure"),
        ("numpy", "torch"),
    ),
    "lrrt_stage.plots": (
        ("errors", "files", "settings", "curve", "rules"),
        ("matplotlib", "numpy", "pandas"),
    ),
    "lrrt_stage.adapters": (("errors", "settings", "state", "measure"), ("torch", *FRAMEWORKS)),
    "pipeline.ranks": ((), ("lrrt_stage", "numpy", "torch")),
    "pipeline.data": (
        ("ranks",),
        (
            *("filelock", "lazy_loader", "lrrt_stage", "numpy"),
            *("skimage", "sklearn", "torch", "torchvision"),
        ),
    ),
    "pipeline.models": (("data",), ("lrrt_stage", "torch", "torchvision")),
    "pipeline.task": (("ranks", "data", "models"), ("lrrt_stage", "numpy", "torch")),
    "pipeline.training": (
        ("ranks", "data", "models", "task"),
        ("lrrt_stage", "matplotlib", "numpy", "optuna", "safetensors", "sqlalchemy", "torch"),
    ),
    "pipeline.jobs": (
        ("data", "models", "task", "training"),
        ("lrrt_stage", "joblib", "ray", "torch"),
    ),
    "pipeline.decide": (
        ("ranks", "data", "models", "task", "training", "jobs"),
        ("lrrt_stage", "matplotlib", "numpy"),
    ),
    "pipeline.studies": (
        ("data", "models", "task", "training", "jobs"),
        ("lrrt_stage", "matplotlib", "numpy", "pandas", "scipy"),
    ),
    "mlflow_project.tracking": (
        (),
        (
            "filelock",
            "lrrt_stage",
            "pipeline",
            "mlflow",
            "numpy",
            "requests",
            "rich",
            "sqlalchemy",
            "torch",
        ),
    ),
    "mlflow_project.handoff": (("tracking",), ("lrrt_stage", "pipeline", "mlflow", "torch")),
    "mlflow_project.stages": (
        ("tracking", "handoff"),
        ("lrrt_stage", "pipeline", "mlflow", "optuna", "pandas", "torch"),
    ),
    "mlflow_project.callbacks": (
        ("handoff", "stages"),
        ("lrrt_stage", "lightning", "mlflow", "pytorch_lightning", "torch", "transformers"),
    ),
    "mlflow_project.cli": (
        ("tracking", "handoff", "stages"),
        ("lrrt_stage", "pipeline", "click", "mlflow", "optuna", "rich_click", *FAILING),
    ),
}
PACKAGES = ("lrrt_stage", "pipeline", "mlflow_project")


# The one import against the direction: a notebook draws a curve, and measuring needs no matplotlib.
AT_FIRST_USE = {("lrrt_stage.curve", "lrrt_stage.plots.notebook.curve_html")}


def room_of(module):
    """The room of a module; a package's own file is in no room."""
    return ".".join(module.split(".")[:2])


def modules():
    """Every module of the three packages, and its file."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path):
    """Names that a file imports, wherever in it, with the lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_every_module_is_in_a_room():
    rooms = {room_of(module) for module, _ in modules()}
    assert rooms - {*PACKAGES, "mlflow_project.__main__"} == {*ROOMS}


def test_the_rooms_have_no_cycle():
    graph = {
        name: [f"{name.partition('.')[0]}.{room}" for room in rooms]
        for name, (rooms, _) in ROOMS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room):
    package = room.partition(".")[0]
    rooms, packages = ROOMS[room]
    allowed = {room, *(f"{package}.{name}" for name in rooms)}
    offending = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules()
        if room_of(module) == room
        for name, line in imports(path)
        if (room, name) not in AT_FIRST_USE
        and room_of(name) not in allowed
        and name.partition(".")[0] not in {*packages, *sys.stdlib_module_names}
    ]
    assert not offending


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lrrt_stage.adapters", {"mlflow", "optuna", "click", "matplotlib.pyplot"} | FRAMEWORKS),
        ("mlflow_project.stages.lrrt", {"pipeline.studies"}),
    ],
)
def test_an_import_loads_nothing_that_it_does_not_need(module, absent):
    script = f"import sys, {module}; print(sorted({absent} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_conda_and_pyproject_bound_the_same_versions():
    (pip,) = (each["pip"] for each in CONDA["dependencies"] if isinstance(each, dict))
    assert pip[0] == "--constraint constraints.txt"
    assert sorted(pip[1:]) == sorted(PYPROJECT["project"]["dependencies"])
    for requirement in pip[1:]:
        operators = {each.operator for each in Requirement(requirement).specifier}
        assert {">="} <= operators <= {">=", "<"}, f"{requirement} is pinned, or not bounded"


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines]


def test_the_constraints_are_names_and_versions_inside_the_bounds():
    pinned = {}
    for each in constraints():
        assert each.url is None
        assert [spec.operator for spec in each.specifier] == ["=="]
        if each.marker is None or each.marker.evaluate():
            pinned[each.name] = next(iter(each.specifier)).version
    for requirement in map(Requirement, PYPROJECT["project"]["dependencies"]):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_tests_run_on_the_constrained_versions():
    for name in ("torch", "torchvision", "mlflow", "optuna", "numpy", "pandas"):
        (pinned,) = (
            each for each in constraints()
            if each.name == name and (each.marker is None or each.marker.evaluate())
        )  # fmt: skip
        assert pinned.specifier.contains(version(name).partition("+")[0]), pinned


def options(command):
    return {p.name: p for p in commands.commands[command].params if isinstance(p, click.Option)}


def arguments(command):
    return {p.name for p in commands.commands[command].params if isinstance(p, click.Argument)}


@pytest.mark.parametrize("entry_point", MLPROJECT["entry_points"])
def test_an_entry_points_parameters_have_the_options_defaults(entry_point):
    known = options(entry_point)
    declared = MLPROJECT["entry_points"][entry_point]["parameters"]
    for name, parameter in declared.items():
        if name in arguments(entry_point):
            assert parameter == {"type": "string"}
            continue
        default = known[name].type.convert(str(parameter["default"]), None, None)
        assert default == known[name].default, name
        kinds = {int: "int", float: "float"}
        expected = "string" if known[name].type.words else kinds.get(known[name].type.type)
        assert parameter["type"] == (expected or "string"), name


@pytest.mark.parametrize("entry_point", MLPROJECT["entry_points"])
def test_an_entry_points_command_passes_every_parameter_to_its_option(entry_point):
    entry = MLPROJECT["entry_points"][entry_point]
    words = shlex.split(entry["command"])
    assert words[:4] == ["python", "-m", "mlflow_project", entry_point]
    by_position = arguments(entry_point)
    named = [word for word in words[4:] if word not in {f"{{{n}}}" for n in by_position}]
    passed = dict(zip(named[::2], named[1::2], strict=True))
    expected = set(entry["parameters"]) - by_position
    assert passed == {f"--{n.replace('_', '-')}": f"{{{n}}}" for n in expected}
    assert len(words) == 4 + len(named) + len(by_position)


@pytest.mark.parametrize("entry_point", MLPROJECT["entry_points"])
def test_an_entry_point_declares_nothing_that_a_recipe_sets(entry_point):
    # MLflow passes declared parameters always, as if they were typed: they would win.
    declared = set(MLPROJECT["entry_points"][entry_point]["parameters"])
    assert not declared & {name for recipe in RECIPES.values() for name in recipe}


def test_every_command_is_an_entry_point():
    # What is kept on disk is not in the folder that mlflow run makes.
    assert set(MLPROJECT["entry_points"]) == {*commands.commands} - {"sync"}
    assert MLPROJECT["conda_env"] == "conda.yaml"


def test_every_option_with_a_default_reads_it_from_a_dataclass():
    free = {"experiment", "tracking_uri"}
    for command in commands.commands.values():
        for option in options(command.name).values():
            assert option.name in free or hasattr(option.type, "words"), option.name


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in ("run", "test"):
        assert f"make {command}" in readme
        assert command in targets


def documented(start):
    """The commands in the documentation's console blocks that begin with ``start``."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.split(r" (?:2>&1|\|\|?) ", line)[0] for line in lines]
    return [command for command in commands if command.startswith(start)]


def test_the_documented_commands_take_their_options():
    found = documented("lrrt-stage ")
    assert len(found) >= 3
    for line in found:
        command, *arguments = shlex.split(line, comments=True)[1:]
        if "--help" not in arguments:
            commands.commands[command].make_context(command, arguments)


def test_the_documented_projects_runs_take_their_parameters():
    found = documented("mlflow run . -e ")
    assert len(found) >= 3
    for line in found:
        words = shlex.split(line, comments=True)
        known = options(words[words.index("-e") + 1])
        given = [after for word, after in pairwise(words) if word == "-P"]
        for name, _, value in (each.partition("=") for each in given):
            known[name].type.convert(value, None, None)
