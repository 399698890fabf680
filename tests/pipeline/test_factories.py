from __future__ import annotations

import pytest

from pipeline.factories import call_factory, is_factory


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


def test_a_factory_that_is_not_there_is_named(complains, write_module):
    write_module("empty_for_tests", "")
    with complains("dataset 'empty_for_tests:make'", "cannot be imported"):
        call_factory("dataset", "empty_for_tests:make", {})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_nobody_has", "a_package_that_nobody_has"),
        ("def make(:\n", "SyntaxError"),
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


def test_arguments_that_a_factory_does_not_take_are_named(complains, write_module):
    write_module("takes_n_for_tests", "def make(n):\n    return n\n")
    with complains("TypeError", "{'m': 3}", "check dataset_args"):
        call_factory("dataset", "takes_n_for_tests:make", {"m": 3})


def test_something_that_cannot_be_called_is_named(complains, write_module):
    write_module("constant_for_tests", "make = 5\n")
    with complains("model 'constant_for_tests:make'", "TypeError"):
        call_factory("model", "constant_for_tests:make", {})
