"""Whatever is typed for any option: it reaches the stage as the type it has, or is one line."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import wraps
from importlib import import_module

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_project.cli import commands as cli
from mlflow_project.cli import entry, outcome
from mlflow_project.tracking import connection, kept
from tests.strategies import JSON

COMMANDS = cli.commands.commands
DEEP = '{"a":' * 2_000 + "1" + "}" * 2_000
NOT_SO_DEEP = '{"a":' * 400 + "1" + "}" * 400
NASTY = [
    *("", " ", "-", "--", "-1", "--help", "0", "1.0", "True", "none", "é日本", "٣"),
    *("x" * 3_000, "word " * 500, "9" * 400, "9" * 5_000, "1e400", "-1e400", "nan", "inf"),
    *("\x1b[31mred\x07", "a\nb\tc", "a\0b", "\udcff", "\u202e", "%00", "'; --", "a`b"),
    *(DEEP, NOT_SO_DEEP, "[]", "[[1, 2]]", "null", '"x"', '{"": 1}', '{"a b": 1}', '{"a": NaN}'),
    *('{"a": 1e999}', '{"a": 1, "a": 2}', '{"a": "\\u0000"}', '{"a": "\\ud800"}', '{"a": 1}'),
    *('{"%s": 1}' % ("k" * 3_000), '{"a": %s}' % ("9" * 400), '{"a": %s}' % ("9" * 5_000)),
    *(
        "/nowhere/x",
        "~no-such-person/x",
        "/dev/zero",
        "/",
        "n" * 300,
        "file:" + "n" * 300,
        "file:",
        "run:",
    ),
    *("imagefolder:", "sqlite:///" + "n" * 300, "sqlite:///", "models:/", "a:b:c", "no.such:thing"),
]


def test_an_option_says_from_the_range_test_run_only_if_it_is_read_from_there():
    found = {option.name: option for option in COMMANDS["check"].params}
    there = {name for name in found if "[default: from the range-test run]" in found[name].help}
    assert {"tests", "vary", "agreement", "batch_size"} <= there
    assert not {"workers", "backend", "gpus_per_test"} & there


@pytest.fixture(scope="module", autouse=True)
def calls():
    """The stages only record the options that they get; there is no store."""
    found = []

    def recording(stage):
        @wraps(stage)
        def record(**options):
            found.append(options)
            return "run"

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        for variable in ("LRRT_WORK_DIR", "LRRT_REQUIRE_SIGNATURE"):  # which some options set
            patch.setenv(variable, "")
        # Where commands import them from, when they run. All are imported before any is replaced,
        # since they import each other's.
        names = ("lrrt", "refine", "train", "main", "check", "compare", "study")
        modules = [import_module(f"mlflow_project.stages.{name}") for name in names]
        for name, module in zip(names, modules, strict=True):
            stage = "range_test_stage" if name == "lrrt" else f"{name}_stage"
            patch.setattr(module, stage, recording(getattr(module, stage)))
        patch.setattr(connection, "connect", lambda *store: None)
        patch.setattr(kept, "mark_ended", lambda: None)
        patch.setattr(kept, "sync", lambda *named: found.append({}) or [])
        patch.setattr(outcome, "show_result", lambda *result: {"fits": True})
        yield found


def wrong(calls, *arguments):
    """What is wrong with how a command ended; empty if the stage was called, or for one line."""
    calls.clear()
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        try:
            entry.main([*arguments])
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            return f"{type(error).__name__} was raised"
    if code == 0:
        (options,) = calls
        parts = [part for part in options.values() if hasattr(part, "__dataclass_fields__")]
        return "" if parts == [again(part) for part in parts] else "options do not go to JSON"
    lines = err.getvalue().splitlines()
    if code != 2 or len(lines) != 1 or not lines[0].startswith("Error: "):
        return f"code {code}: {lines[:3]}"
    if len(lines[0]) > 2_010 or not lines[0].isprintable():
        return f"no line for a terminal: {lines[0]!r}"
    repeated = [each for each in arguments if len(each) > 200 and each[:201] in lines[0]]
    return f"repeats {len(repeated[0])} characters" if repeated else ""


def again(options):
    """Options that were written as JSON and read again."""
    if type(options).__name__ == "RangeTestPlan":
        return type(options).from_dict(json.loads(json.dumps(asdict(options))))
    return type(options)(**json.loads(json.dumps(asdict(options))))


def typed(parameter, value):
    """A value for an option, or for the argument of a command."""
    return [parameter.opts[0], value] if isinstance(parameter, click.Option) else ["--", value]


def given_runs(command):
    return ["run"] if command == "compare" else []


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_typed_for_any_option_is_taken_or_refused_in_one_line(calls, command):
    found = {}
    for parameter in COMMANDS[command].params:
        for value in NASTY:
            arguments = [command, *given_runs(command), *typed(parameter, value)]
            if problem := wrong(calls, *arguments):
                found[parameter.name, value[:40]] = problem
    assert not found


TEXTS = st.text() | JSON.map(json.dumps) | st.floats().map(str) | st.integers().map(str)


@pytest.mark.parametrize("command", COMMANDS)
@given(data=st.data())
def test_any_text_for_some_options_is_taken_or_refused_in_one_line(calls, command, data):
    named = [each for each in COMMANDS[command].params if isinstance(each, click.Option)]
    arguments = [command, *given_runs(command)]
    for parameter in data.draw(st.lists(st.sampled_from(named), min_size=1, max_size=3)):
        arguments += typed(parameter, data.draw(TEXTS | st.sampled_from(NASTY)))
    assert not wrong(calls, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["x" * 3_000],
        ["\x1b[31m"],
        [""],
        ["lrrt", "--" + "x" * 3_000],
        ["lrrt", "--\x1b[31m"],
        ["lrrt", "--see\nd=3"],
        ["lrrt", "--" + "x" * 3_000 + "=3"],
        ["lrrt", "y" * 3_000],
        ["lrrt", "--seed"],
        ["compare"],
        ["main", "--refine", "maybe " * 500],
    ],
    ids=range(11),
)
def test_what_click_says_is_one_line_as_well(calls, arguments):
    assert not wrong(calls, *arguments)
    assert not calls


def test_a_value_reaches_the_stage_as_the_type_it_has(calls):
    assert not wrong(calls, "lrrt", "--seed", "3", "--model-args", '{"a": [1.5, null, "\\t"]}')
    (options,) = calls
    assert options["task"].seed == 3
    assert options["task"].model_args == {"a": [1.5, None, "\t"]}
