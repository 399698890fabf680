"""Command-line options made from the dataclasses that they fill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import partial
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import rich_click as click
from click.core import ParameterSource

from lrrt_stage.errors import LRRTError
from lrrt_stage.files import part_of
from lrrt_stage.settings import (
    TYPES,
    Options,
    check_setting,
    is_a,
    option_text,
    option_type,
    require,
    setting,
)
from mlflow_project.tracking.environment import OutageOptions, in_project_folder
from pipeline.data.names import DATASET_NAMES
from pipeline.jobs.options import PoolOptions

__all__ = [
    "OptionType",
    "OutputOptions",
    "examples",
    "from_values",
    "given",
    "options_of",
    "store_options",
    "tracked",
    "typed",
]

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
UNGIVEN = "from the range-test run"
PATHS = {
    "dataset": [f"{name}:" for name in DATASET_NAMES],
    "init": ["file:"],
    "storage": ["sqlite:///"],
    "data_dir": [""],
    "output_json": [""],
    "work_dir": [""],
}
"""Option that can hold a path -> what stands before the path."""


@dataclass(frozen=True)
class OutputOptions(Options):
    """Where the result is written, in addition to the store."""

    output_json: str | None = setting(
        None,
        "File for the result as JSON, or - for standard output: run ids and ranges for the next "
        "step of a pipeline.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_json in (None, "-"):
            return
        require(
            _can_be_written(self.output_json),
            f"output_json={self.output_json!r} cannot be written: give a file in an existing, "
            "writable folder",
        )


def _can_be_written(file: str) -> bool:
    """Return whether a regular file can be made or replaced, beside which is the part of it."""
    file = os.path.realpath(file)
    try:
        os.stat(part_of(Path(file)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError):  # a name that is too long, for example, or the root folder
        return False
    replaced = os.path.isfile(file) or not os.path.lexists(file)
    return replaced and os.access(Path(file).parent, os.W_OK)


class OptionType(click.ParamType):
    """The type of a dataclass field: int, float, str, bool or a JSON object, each or none."""

    def __init__(self, hint: Any) -> None:
        self.type, self.words = option_type(hint)
        names: dict[type, str] = {dict: "json", str: "text"}
        self.name = names.get(self.type, self.type.__name__)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the field's value for the text on the command line."""
        if not isinstance(value, str):
            return value
        if None in self.words and value.lower() in ("none", ""):
            return None
        if value in self.words:
            return value
        if self.type is bool:
            return click.BOOL.convert(value, param, ctx)
        try:
            made = _parsed(value) if self.type is dict else self.type(value)
        except (ValueError, RecursionError):  # a RecursionError of JSON inside JSON
            made = None
        if not is_a(made, self.type):
            words = "".join(f" or {option_text(word)}" for word in self.words)
            self.fail(f"{value!r} is not {TYPES[self.type][1]}{words}", param)
        return made


def _parsed(text: str) -> Any:
    """Return what is in a JSON text; ValueError where a name appears twice in an object of it."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(pairs)) < len(pairs):
            raise ValueError("a name appears twice")
        return made

    return json.loads(text, object_pairs_hook=as_dict)


def options_of(panel: str, *options: type, defaults: bool = True) -> Callable[[Command], Command]:
    """Add an option for every field of the dataclasses ``options``, under one heading in the help.

    With ``defaults=False`` an option that is not given is None: see :func:`given`. Where tests run
    is taken from no run, so these options have their defaults all the same.
    """
    chosen = [
        (option, get_type_hints(owner)[option.name], defaults or base is PoolOptions)
        for owner in options
        # The fields that a dataclass adds come before those that it inherits, base by base.
        for base in owner.__mro__
        for option in fields(owner)
        if option.name in get_annotations(base)
    ]
    names = [f"--{option.name.replace('_', '-')}" for option, *_ in chosen]

    def decorate(command: Command) -> Command:
        for name, (option, hint, has_default) in reversed(list(zip(names, chosen, strict=True))):
            declared = option.metadata
            default, choices = declared["default"], declared["choices"]
            text = declared["help"] + (f" One of: {', '.join(choices)}." if choices else "")
            command = click.option(
                name,
                option.name,
                type=OptionType(hint),
                default=default if has_default else None,
                callback=partial(_checked, option, hint),
                help=f"{text} [default: {option_text(default) if has_default else UNGIVEN}]",
            )(command)
        return click.option_panel(panel, options=names)(command)

    return decorate


def _checked(
    declared: Field[Any], hint: Any, context: click.Context, option: click.Parameter, value: Any
) -> Any:
    """Return the value of an option, with a full path; raise LRRTError if it is not allowed.

    This is checked here, although the dataclass checks it again, so that a mistyped value is
    refused before torch and MLflow are imported.
    """
    if context.get_parameter_source(declared.name) is not ParameterSource.DEFAULT:
        check_setting(declared, hint, value)
    return _full_path(option, value) if declared.name in PATHS else value


def _full_path(option: click.Parameter, value: Any) -> Any:
    """Return an option with the full path in it, which a later stage finds from any folder."""
    for before in PATHS[option.name or ""] if value else ():
        path = value.removeprefix(before)
        if value.startswith(before) and path not in ("", "-", ":memory:"):
            full = Path(os.path.expanduser(path))
            require(
                full.is_absolute() or not path.startswith("~"),
                f"{option.name}={value!r}: there is no such home folder: give the full path",
            )
            require(
                full.is_absolute() or not in_project_folder(),
                f"{option.name}={value!r} has a relative path, and mlflow run has changed the "
                f"folder: give the full path, {before}$PWD/{path}",
            )
            try:
                os.stat(full)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                pass  # not there yet, or not for everybody: whoever opens it says so
            except OSError as error:  # a name that is too long, or a link to itself
                raise LRRTError(
                    f"{option.name}={value!r} is no path ({error.strerror}): give another one"
                ) from error
            return f"{before}{full.absolute()}"
    return value


def tracked(command: Command) -> Command:
    """Add the options that say where a command's runs and its result are stored."""
    command = options_of("Result", OutputOptions)(command)
    command = click.option(
        "--experiment", type=OptionType(str), help="Experiment, made if it is not there."
    )(command)
    return store_options(command, "--experiment")


def store_options(command: Command, *more: str) -> Command:
    """Add the options that name the store, and say what happens while it is away."""
    command = click.option(
        "--tracking-uri",
        type=OptionType(str),
        help="MLflow store: sqlite:///FILE or http://HOST:PORT.",
        show_default="MLFLOW_TRACKING_URI, else mlflow.db here",
    )(command)
    command = click.option_panel("Tracking", options=[*more, "--tracking-uri"])(command)
    return options_of("While the store is away", OutageOptions)(command)


def examples(*lines: str) -> str:
    """Return a command's epilog with one example per line."""
    # Without blank lines, the examples would be joined to a paragraph.
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def from_values(
    options: type[T], values: dict[str, Any], preset: Mapping[str, Any] | None = None
) -> T:
    """Return the dataclass filled from the arguments of the running command.

    An option that was not given takes its value from ``preset``, if it is there. Nested
    dataclasses are filled in the same way.
    """
    preset, hints = preset or {}, get_type_hints(options)

    def value(name: str) -> Any:
        if is_dataclass(hints[name]):
            return from_values(hints[name], values, preset)
        return preset[name] if name in preset and not typed(name) else values[name]

    return options(**{field.name: value(field.name) for field in fields(options)})  # type: ignore[arg-type]


def given(values: dict[str, Any], options: type) -> dict[str, Any]:
    """Return the fields of ``options`` that were given to the running command."""
    return {field.name: values[field.name] for field in fields(options) if typed(field.name)}


def typed(name: str) -> bool:
    """Return whether an option of the running command was given, in any way."""
    # The value does not tell: it may have been given and be equal to the default.
    context = click.get_current_context()
    assert context is not None
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT
