from __future__ import annotations

import pytest

from lrrt_stage import LRRTError
from pipeline.data.datasets import load_data
from pipeline.data.factories import call_factory
from pipeline.data.names import is_factory
from pipeline.models.networks import build_model


@pytest.mark.parametrize("name", ["module:make", "package.module:make", "_a.b_2:C"])
def test_a_module_and_a_name_in_it_are_a_factory(name):
    assert is_factory(name)


@pytest.mark.parametrize(
    "name",
    ["cnn", "", ":", "module:", ":make", "imagefolder:/a/x", "a:./b", "my-package:make", "a..b:c"],
)
def test_other_names_are_no_factory(name):
    assert not is_factory(name)


def test_arguments_are_given_by_name(write_module):
    write_module("sums_for_tests", "def add(a, b=10):\n    return a - b\n")

    assert call_factory("model", "sums_for_tests:add", {"a": 3}) == -7
    assert call_factory("model", "sums_for_tests:add", {"b": 1, "a": 3}) == 2


def test_the_current_folder_is_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "local_for_tests.py").write_text("def make():\n    return 'from here'\n")
    monkeypatch.chdir(tmp_path)

    assert call_factory("model", "local_for_tests:make", {}) == "from here"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\nimport a_package_that_nobody_has", ["a_package_that_nobody_has", ".py:2"]),
        ("x = 1\ndef make(:\n", ["SyntaxError", "broken_for_tests.py:2"]),
        ("x = 1\n\nopen('/no/such/file')", ["/no/such/file", "broken_for_tests.py:3"]),
        ("raise ImportError('first line\\nsecond line')", ["first line", ".py:1"]),
        ("import broken_for_tests.sub", ["broken_for_tests.sub"]),
        ("import sys\nsys.exit('no licence')", ["SystemExit: no licence", ".py:2"]),
        ("class Odd(BaseException): ...\nraise Odd('text')", ["Odd: text", ".py:2"]),
        ("raise GeneratorExit", ["GeneratorExit", ".py:1"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason_and_the_line(
    complains, write_module, source, words
):
    write_module("broken_for_tests", source)
    with complains("model 'broken_for_tests:make'", "PYTHONPATH", *words):
        call_factory("model", "broken_for_tests:make", {})


@pytest.mark.parametrize("name", ["no_such_module_at_all", "no_such_module_at_all.sub"])
def test_a_module_that_does_not_exist_is_named_with_its_remedy(complains, name):
    with complains(f"model '{name}:make'", "No module named", "PYTHONPATH"):
        call_factory("model", f"{name}:make", {})


MANY = [f"m{index}" for index in range(500)]


@pytest.mark.parametrize(
    ("source", "defined"),
    [
        (
            "from math import sin\ndef load(): ...\nclass Other: ...\n",
            "such as load, Other, or define",
        ),
        ("def made(): ...\ndef _make(): ...\nclass Other: ...\n", "such as made, Other, or define"),
        (
            "".join(
                f"def {n}(): ...\n"
                for n in ["made", "maker", "remake", *map("m{}".format, range(500))]
            ),
            "such as maker, remake, made, or define",
        ),
        ("make = 5\n", "'make': define it there"),
    ],
)
def test_a_name_that_is_no_factory_is_told_those_that_the_file_defines(
    complains, write_module, source, defined
):
    write_module("names_for_tests", source)
    with complains("dataset 'names_for_tests:make'", "names_for_tests.py", defined):
        call_factory("dataset", "names_for_tests:make", {})


def test_an_error_that_says_what_to_do_gets_no_further_advice(write_module):
    error = "from lrrt_stage import LRRTError\ndef make(n=1):\n    raise LRRTError('n: lower it')\n"
    write_module("explains_for_tests", error)
    for arguments, called in (({}, ""), ({"n": 2}, ", called with {'n': 2}")):
        with pytest.raises(LRRTError) as caught:
            call_factory("setup", "explains_for_tests:make", arguments)
        message = str(caught.value)
        assert message.startswith(f"setup 'explains_for_tests:make'{called}: n: lower it at ")
        assert message.endswith("explains_for_tests.py:3")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        # The message of a KeyError is quoted, and so one line.
        (
            "def make(n):\n    raise KeyError('first\\nsecond')\n",
            ["raised KeyError", ".py:2", "check model_args"],
        ),
        ("def make(n):\n    return 'x' + n\n", ["raised TypeError", ".py:2"]),
        ("def make(n):\n    raise SystemExit(n)\n", ["raised SystemExit: 3", ".py:2"]),
        ("def make(n):\n    raise GeneratorExit\n", ["raised GeneratorExit", ".py:2"]),
        (
            "import torch\ndef widen():\n    torch.nn.Linear(3, -1)\ndef make(n):\n    widen()\n",
            ["raised RuntimeError", ".py:3"],
        ),
        (
            "import numpy as np\nfrom pipeline import Data\ndef make(n):\n"
            "    split = np.zeros((4, 2)), np.zeros(4)\n    Data(split, split, 2)\n",
            ["train split", "ndarray of float64 [4, 2]", ".py:5"],
        ),
    ],
)
def test_a_factory_that_raises_is_named_with_its_arguments_and_the_line(
    complains, write_module, source, words
):
    write_module("raises_for_tests", source)
    with complains("'raises_for_tests:make'", "{'n': 3}", *words):
        call_factory("model", "raises_for_tests:make", {"n": 3})
    with pytest.raises(LRRTError) as caught:
        call_factory("model", "raises_for_tests:make", {"n": 3})
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("parameters", "given", "problem"),
    [
        ("n, width=64, *, act='relu'", {"n": 1, "m": 3}, "unexpected keyword argument 'm'"),
        ("n, width=64, *, act='relu'", {}, "missing a required argument: 'n'"),
        ("", {"n": 1}, "unexpected keyword argument 'n'"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_those_that_do(
    complains, write_module, parameters, given, problem
):
    write_module("takes_for_tests", f"def make({parameters}):\n    return 1\n")
    with complains(f"takes ({parameters})", problem, str(given), "dataset_args"):
        call_factory("dataset", "takes_for_tests:make", given)


HEAD = """
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from pipeline import Data
class Net(nn.Linear):
    def __init__(self): super().__init__(4, 3)
x, y = torch.zeros(6, 4), torch.tensor([0, 1, 2] * 2)
split = x, y
stored = TensorDataset(*split)
stored.classes = [0, 1, 2]
unnamed = TensorDataset(*split)
"""


@pytest.mark.parametrize(
    ("made", "described"),
    [
        ("None", "None"),
        ("Net", "the class Net"),
        ("(Net(), 3)", "tuple of (Net, int)"),
        ("Net().state_dict()", "OrderedDict"),
    ],
)
def test_a_factory_that_makes_no_model_is_told_what_it_made(
    complains, write_module, made, described
):
    write_module("no_model_for_tests", f"{HEAD}def make():\n    return {made}\n")
    with complains(f"'no_model_for_tests:make' returned {described}", "torch.nn.Module"):
        build_model("no_model_for_tests:make", {}, (4,), 3)


@pytest.mark.parametrize(
    ("made", "described"),
    [
        ("None", "None"),
        ("(DataLoader(stored), stored)", "(DataLoader, TensorDataset)"),
        ("split", "(Tensor of torch.float32 [6, 4], Tensor of torch.int64 [6])"),
        ("((x.numpy(), y.numpy()),) * 2", "ndarray of float32 [6, 4]"),
        ("((x, [0, 1]), split)", "list of (int, int)"),
        ("[0] * 1000", "list of (int, int, int, int, and 996 more)"),
        ("(TensorDataset, TensorDataset)", "the class TensorDataset"),
        ("(unnamed, unnamed)", "classes"),
    ],
)
def test_a_factory_that_makes_no_data_is_told_what_it_made(
    complains, write_module, made, described
):
    write_module("no_data_for_tests", f"{HEAD}def load():\n    return {made}\n")
    with complains("'no_data_for_tests:load' returned", described, "pipeline.data.Data"):
        load_data("no_data_for_tests:load", {}, "")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            "((x, y.float()),) * 2",
            ["targets of the train split", "torch.float32 [6]"],
        ),
        (
            "((x, nn.functional.one_hot(y)),) * 2",
            ["labels of the train split", "int64 [6, 3]"],
        ),
        ("((x[:0], y[:0]), split)", ["train split is empty"]),
        ("(split, (x / 0, y))", ["example 0 of the val split", "NaN"]),
    ],
)
def test_data_that_cannot_be_used_is_refused(complains, write_module, made, words):
    write_module("labels_for_tests", f"{HEAD}def load():\n    return {made}\n")
    with complains(*words):
        load_data("labels_for_tests:load", {}, "")


@pytest.mark.parametrize(
    ("made", "classes"),
    [
        ("(split, split)", 3),
        ("[list(split), list(split)]", 3),
        ("[stored, stored]", 3),
        ("Data(split, split, 5)", 5),
    ],
)
def test_what_a_dataset_factory_may_return_is_taken(write_module, made, classes):
    write_module("data_for_tests", f"{HEAD}def load():\n    return {made}\n")
    data = load_data("data_for_tests:load", {}, "")
    assert data.num_classes == classes
    assert data.sizes == (6, 6)
    assert data.mean is None


def test_a_class_is_a_factory_of_models(write_module):
    write_module("class_for_tests", HEAD)
    assert build_model("class_for_tests:Net", {}, (4,), 3).out_features == 3


@pytest.mark.parametrize(
    "source", ["raise KeyboardInterrupt", "def make():\n    raise KeyboardInterrupt"]
)
def test_an_interruption_is_none_of_the_factory(write_module, source):
    write_module("interrupted_for_tests", source)
    with pytest.raises(KeyboardInterrupt):
        call_factory("model", "interrupted_for_tests:make", {})
