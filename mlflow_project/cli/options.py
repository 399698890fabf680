"""Command-line options made from the dataclasses that they fill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import rich_click as click
from click.core import ParameterSource

from lrrt_stage.settings import option_text, option_type
from mlflow_project.cli.outcome import OutputOptions

__all__ = [
    "OptionType",
    "examples",
    "from_values",
    "given",
    "options_of",
    "tracked",
    "typed",
]

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
UNGIVEN = "from the range-test run"


class OptionType(click.ParamType):
    """The type of a dataclass field: int, float, str, bool or a JSON object, each or none."""

    def __init__(self, hint: Any) -> None:
        self.type, self.optional = option_type(hint)
        names: dict[type, str] = {dict: "json", str: "text"}
        self.name = names.get(self.type, self.type.__name__)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the field's value for the text that was typed."""
        if not isinstance(value, str):
            return value
        if self.optional and value.lower() in ("none", ""):
            return None
        if self.type is bool:
            return click.BOOL.convert(value, param, ctx)
        try:
            # dict() would also take a list of pairs.
            return {**json.loads(value)} if self.type is dict else self.type(value)
        except (ValueError, TypeError):
            kinds = {
                int: "a whole number",
                float: "a number",
                dict: "a JSON object like '{\"width\": 64}'",
            }
            none = " or none" if self.optional else ""
            self.fail(f"{value!r} is not {kinds[self.type]}{none}", param)


def options_of(
    panel: str, *options: type, defaults: bool = True, only: Iterable[str] | None = None
) -> Callable[[Command], Command]:
    """Add an option for every field of the dataclasses ``options``, under one heading in the help.

    With ``defaults=False`` an option that is not given is None: see :func:`given`. ``only`` names
    the fields to take; all where it is not given.
    """
    chosen = [
        (each, get_type_hints(owner)[each.name])
        for owner in options
        # What a dataclass adds comes before what it inherits.
        for each in sorted(fields(owner), key=lambda each: each.name not in vars(owner))
        if only is None or each.name in only
    ]

    def decorate(command: Command) -> Command:
        for each, hint in reversed(chosen):
            command = _option(each, hint, defaults)(command)
        names = [f"--{each.name.replace('_', '-')}" for each, _ in chosen]
        return click.option_panel(panel, options=names)(command)

    return decorate


def tracked(command: Command) -> Command:
    """Add the options that say where a command's runs go, and its result."""
    command = options_of("Result", OutputOptions)(command)
    for option in (
        click.option("--experiment", help="Experiment, made if it is not there.", default=None),
        click.option(
            "--tracking-uri",
            help="MLflow store: sqlite:///FILE or http://HOST:PORT.",
            default=None,
            show_default="MLFLOW_TRACKING_URI, else mlflow.db here",
        ),
    ):
        command = option(command)
    return click.option_panel("Tracking", options=["--experiment", "--tracking-uri"])(command)


def examples(*lines: str) -> str:
    """Return a command's epilog with an example a line."""
    # A blank line between them: others are run together.
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def from_values(
    options: type[T], values: dict[str, Any], preset: Mapping[str, Any] | None = None
) -> T:
    """Return the dataclass filled from the arguments of the command that is running.

    An option that was not typed has its value in ``preset``, where it is there. Dataclasses in
    the dataclass are filled alike.
    """
    preset, hints = preset or {}, get_type_hints(options)

    def value(name: str) -> Any:
        if is_dataclass(hints[name]):
            return from_values(hints[name], values, preset)
        return preset[name] if name in preset and not typed(name) else values[name]

    return options(**{each.name: value(each.name) for each in fields(options)})  # type: ignore[arg-type]


def given(values: dict[str, Any], options: type) -> dict[str, Any]:
    """Return the fields of ``options`` that were given to the command that is running."""
    return {each.name: values[each.name] for each in fields(options) if typed(each.name)}


def typed(name: str) -> bool:
    """Tell whether an option of the command that is running was given, by whatever way."""
    # A value cannot tell: what was typed may be the default.
    context = click.get_current_context()
    assert context is not None
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _option(each: Field[Any], hint: Any, defaults: bool) -> Callable[[Command], Command]:
    default = each.default_factory() if callable(each.default_factory) else each.default
    text = each.metadata["help"]
    choices = each.metadata["choices"]
    if choices is not None:
        text += f" One of: {', '.join(choices)}."
    return click.option(
        f"--{each.name.replace('_', '-')}",
        each.name,
        type=OptionType(hint),
        default=default if defaults else None,
        help=f"{text} [default: {option_text(default) if defaults else UNGIVEN}]",
    )
