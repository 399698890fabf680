from __future__ import annotations

import pytest

from pipeline.data.datasets import load_data
from pipeline.data.factories import call_factory, is_factory
from pipeline.models.networks import build_model


@pytest.mark.parametrize("name", ["module:make", "package.module:make", "_a.b_2:C"])
def test_a_module_and_a_name_in_it_are_a_factory(name):
    assert is_factory(name)


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        "",
        ":",
        "module:",
        ":make",
        "imagefolder:/data/x",
        "a:./b",
        "my-package:make",
        "a..b:c",
    ],
)
def test_other_names_are_no_factory(name):
    assert not is_factory(name)


def test_arguments_are_given_by_name(write_module):
    write_module("sums_for_tests", "def add(a, b=10):\n    return a - b\n")

    assert call_factory("model", "sums_for_tests:add", {"a": 3}) == -7
    assert call_factory("model", "sums_for_tests:add", {"b": 1, "a": 3}) == 2


def test_the_current_folder_is_looked_in(tmp_path, monkeypatch, write_module):
    write_module("elsewhere_for_tests", "def make():\n    return 1\n")
    here = tmp_path / "here"
    here.mkdir()
    (here / "local_for_tests.py").write_text("def make():\n    return 'from here'\n")
    monkeypatch.chdir(here)

    assert call_factory("model", "local_for_tests:make", {}) == "from here"


def test_a_module_that_is_not_there_is_named_with_its_remedy(complains):
    with complains(
        "model 'no_such_module_at_all.sub:make'", "'no_such_module_at_all'", "PYTHONPATH"
    ):
        call_factory("model", "no_such_module_at_all.sub:make", {})


def test_a_module_of_a_package_that_is_not_there_is_named_with_the_nearest(complains, write_module):
    write_module("flowers_for_tests/__init__", "")
    write_module("flowers_for_tests/data", "")
    with complains("unknown module of flowers_for_tests 'dat'", "did you mean 'data'?"):
        call_factory("dataset", "flowers_for_tests.dat:load", {})


def test_a_factory_that_is_not_there_is_named_with_the_file_and_the_nearest(
    complains, write_module
):
    write_module("names_for_tests", "from math import sin\ndef load(): ...\ndef other(): ...\n")
    with complains("dataset 'names_for_tests:laod'", "names_for_tests.py", "did you mean 'load'?"):
        call_factory("dataset", "names_for_tests:laod", {})
    with complains("choose one of load, other"):
        call_factory("dataset", "names_for_tests:x", {})


def test_a_module_without_functions_is_named_with_its_file(complains, write_module):
    write_module("empty_for_tests", "size = 3\n")
    with complains("dataset 'empty_for_tests:make'", "empty_for_tests.py", "neither functions"):
        call_factory("dataset", "empty_for_tests:make", {})


def test_what_a_module_needs_and_is_not_installed_is_told_from_the_module(complains, write_module):
    write_module("needs_for_tests", "x = 1\nimport a_package_that_nobody_has\n")
    with complains("needs 'a_package_that_nobody_has'", "needs_for_tests.py:2", "install it"):
        call_factory("model", "needs_for_tests:make", {})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_nobody_has", "a_package_that_nobody_has"),
        ("def make(:\n", "SyntaxError"),
        ("x = 1\ndef make(:\n", "broken_for_tests.py:2"),
        ("x = 1\n\nopen('/no/such/file')", "broken_for_tests.py:3"),
        ("open('/no/such/file')", "/no/such/file"),
        ("raise ValueError('not today')", "not today"),
        ("raise ImportError('first line\\nsecond line')", "first line"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(
    complains, write_module, source, reason
):
    write_module("broken_for_tests", source)
    with complains("model 'broken_for_tests:make'", reason):
        call_factory("model", "broken_for_tests:make", {})


def test_a_factory_that_raises_is_named_with_its_arguments_and_the_cause_is_kept(write_module):
    write_module(
        "raises_for_tests", "def make(n):\n    raise KeyError('first line\\nsecond line')\n"
    )
    with pytest.raises(ValueError, match="raised KeyError") as caught:
        call_factory("model", "raises_for_tests:make", {"n": 3})

    message = str(caught.value)
    assert "\n" not in message
    assert "{'n': 3}" in message
    assert "check model_args" in message
    assert isinstance(caught.value.__cause__, KeyError)


def test_where_a_factory_raised_is_the_line_of_the_users_own_file(complains, write_module):
    write_module(
        "deep_for_tests",
        "import torch\ndef widen(n):\n    return torch.nn.Linear(n, -1)\n"
        "def make(n):\n    return widen(n)\n",
    )
    with complains("raised RuntimeError", "deep_for_tests.py:3", "called with {'n': 3}"):
        call_factory("model", "deep_for_tests:make", {"n": 3})


def test_data_that_a_factory_could_not_make_is_found_in_the_users_own_file(complains, write_module):
    write_module(
        "arrays_for_tests",
        "import numpy as np\nfrom pipeline import Data\ndef load():\n"
        "    split = np.zeros((4, 2)), np.zeros(4)\n    return Data(split, split, 2)\n",
    )
    with complains(
        "the train split is tuple of (a float64 array of shape [4, 2], a float64 array of shape",
        "torch.from_numpy",
        "arrays_for_tests.py:5",
    ):
        call_factory("dataset", "arrays_for_tests:load", {})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"n": 1, "m": 3}, "unexpected keyword argument 'm'"),
        ({}, "missing a required argument: 'n'"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_those_that_do(
    complains, write_module, given, problem
):
    write_module("takes_n_for_tests", "def make(n, width=64, *, act='relu'):\n    return n\n")
    taken = "it takes n, width=64, act='relu'"
    with complains(problem, taken, str(given), "check dataset_args"):
        call_factory("dataset", "takes_n_for_tests:make", given)


def test_a_factory_without_arguments_says_so(complains, write_module):
    write_module("takes_nothing_for_tests", "def make():\n    return 1\n")
    with complains("it takes no arguments"):
        call_factory("dataset", "takes_nothing_for_tests:make", {"n": 1})


def test_a_type_error_of_the_factorys_own_is_not_taken_for_wrong_arguments(complains, write_module):
    write_module("own_error_for_tests", "def make(n):\n    return n + 'x'\n")
    with complains("raised TypeError: unsupported operand", "own_error_for_tests.py:2"):
        call_factory("dataset", "own_error_for_tests:make", {"n": 1})


def test_something_that_cannot_be_called_is_named_with_its_type(complains, write_module):
    write_module("constant_for_tests", "make = 5\n")
    with complains("model 'constant_for_tests:make' is of type int", "name a function"):
        call_factory("model", "constant_for_tests:make", {})


HEAD = """
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
class Net(nn.Linear):
    def __init__(self): super().__init__(4, 3)
x, y = torch.zeros(6, 4), torch.tensor([0, 1, 2] * 2)
split = x, y
stored = TensorDataset(*split)
stored.classes = [0, 1, 2]
"""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("None", ["returned None", "is its return missing?"]),
        ("Net", ["the class Net", "not the class"]),
        ("(Net(), 3)", ["tuple of (Net, int)", "return the model alone"]),
        ("Net().state_dict()", ["OrderedDict", "load these weights"]),
        ("lambda x: x", ["returned function"]),
    ],
)
def test_a_factory_that_makes_no_model_is_told_what_it_made(complains, write_module, made, words):
    write_module("no_model_for_tests", f"{HEAD}def make():\n    return {made}\n")
    with complains(
        "model 'no_model_for_tests:make' returned", "expected a torch.nn.Module", *words
    ):
        build_model("no_model_for_tests:make", {}, (4,), 3)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("None", ["returned None", "is its return missing?"]),
        ("DataLoader(stored)", ["returned DataLoader", "return the Dataset of a DataLoader"]),
        ("(DataLoader(stored), stored)", ["(DataLoader, TensorDataset)", "return the Dataset of"]),
        ("split", ["float32 tensor of shape [6, 4]", "hold some examples back"]),
        ("(x, y, x, y)", ["int64 tensor of shape [6]", "pair them"]),
        ("((x.numpy(), y.numpy()),) * 2", ["float32 array of shape [6, 4]", "torch.from_numpy"]),
        ("(split, split, split)", ["tuple of (tuple of (", "return one of these"]),
        ("[0] * 1000", ["list of (int, int, int, int, and 996 more)"]),
        ("{'train': split, 'val': split}", ["returned dict"]),
        ("(TensorDataset, TensorDataset)", ["the class TensorDataset", "not the class"]),
        ("(each for each in (split, split))", ["returned generator"]),
    ],
)
def test_a_factory_that_makes_no_data_is_told_what_it_made(complains, write_module, made, words):
    write_module("no_data_for_tests", f"{HEAD}def load():\n    return {made}\n")
    with complains("dataset 'no_data_for_tests:load' returned", "pipeline.data.Data", *words):
        load_data("no_data_for_tests:load", {}, "")


@pytest.mark.parametrize(
    ("labels", "description"),
    [("y.float()", "float32 tensor of shape [6]"), ("nn.functional.one_hot(y)", "shape [6, 3]")],
)
def test_labels_of_another_kind_are_described(complains, write_module, labels, description):
    write_module("labels_for_tests", f"{HEAD}def load():\n    return ((x, {labels}),) * 2\n")
    with complains("the train labels are", description, "integer class indices"):
        load_data("labels_for_tests:load", {}, "")


@pytest.mark.parametrize("made", ["(split, split)", "[stored, stored]", "Data(split, split, 3)"])
def test_what_a_dataset_factory_may_return_is_taken(write_module, made):
    source = f"{HEAD}from pipeline import Data\ndef load():\n    return {made}\n"
    write_module("data_for_tests", source)
    data = load_data("data_for_tests:load", {}, "")
    assert data.num_classes == 3
    assert data.sizes == (6, 6)


def test_a_class_is_a_factory_of_models(write_module):
    write_module("class_for_tests", HEAD)
    assert build_model("class_for_tests:Net", {}, (4,), 3).out_features == 3
