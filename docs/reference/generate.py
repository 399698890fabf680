"""Write the generated parts of the reference pages, so that they are readable without a build.

    python docs/reference/generate.py            # rewrites the pages beside this file
    python docs/reference/generate.py --check    # exit code 1 if a page is out of date

A page marks a generated part by a pair of comments. ``<!-- generated: commands -->`` is replaced by
the options of all commands, ``<!-- generated: package.module -->`` by the public names of a module.
Modules are read by griffe without being imported, so no optional dependency is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from griffe import (
    Attribute,
    Class,
    Function,
    GriffeLoader,
    Module,
    Object,
    ParameterKind,
    load_extensions,
)

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
GENERATED = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
ROLE = re.compile(r":\w+:`~?([^`]*)`")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
MARKS = {ParameterKind.var_positional: "*", ParameterKind.var_keyword: "**"}


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or check them; return the exit code."""
    loader = GriffeLoader(
        search_paths=[ROOT], extensions=load_extensions(FOLDER.parent / "settings_extension.py")
    )
    outdated = []
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        updated = GENERATED.sub(lambda part: part[1] + _content(part[2], loader) + part[3], text)
        if updated != text:
            outdated.append(page.name)
            if "--check" not in arguments:
                page.write_text(updated, encoding="utf-8")
    print(f"reference pages that were out of date: {', '.join(outdated) or 'none'}")
    return int(bool(outdated) and "--check" in arguments)


def _content(name: str, loader: GriffeLoader) -> str:
    lines = _commands() if name == "commands" else _module(_load(name, loader))
    return "\n" + "\n".join(lines) + "\n"


def _load(name: str, loader: GriffeLoader) -> Module:
    package, _, rest = name.partition(".")
    loaded = loader.modules_collection.members.get(package) or loader.load(package)
    try:
        module = loaded[rest] if rest else loaded
    except KeyError:
        raise SystemExit(
            f"a reference page names the module {name}, which does not exist"
        ) from None
    return module


def _module(module: Module) -> Iterator[str]:
    """Yield a module's heading, how its names are imported, and a table of them."""
    yield from (f"### {module.path}", "", _first_sentence(module), "")
    names = [str(name) for name in module.exports or []]
    sources: dict[str, list[str]] = {}
    for name in names:
        sources.setdefault(_imported_from(name, module), []).append(name)
    for source, imported in sorted(sources.items()):
        yield from (f"`from {source} import {', '.join(imported)}`", "")
    yield from ("| name | description |", "|---|---|")
    for name in names:
        yield from _rows(module[name], name)
    yield ""


def _imported_from(name: str, module: Module) -> str:
    """Return the outermost package that exports ``name`` of ``module``, or the module."""
    parents = [module]
    while isinstance(parents[-1].parent, Module):
        parents.append(parents[-1].parent)
    exporting = [parent for parent in parents if name in map(str, parent.exports or [])]
    return exporting[-1].path


def _rows(item: Object, name: str) -> Iterator[str]:
    """Yield the row of a name and, of a class, those of its documented public members."""
    yield _row(f"`{_form(item, name)}`", _first_sentence(item))
    if isinstance(item, Class):
        for member in item.members.values():
            if member.is_alias or member.name.startswith("_") or not member.docstring:
                continue
            yield _row(f"`{_form(member, f'{name}.{member.name}')}`", _first_sentence(member))


def _form(item: Object, name: str) -> str:
    """Return how a name is used: the call of a function or a class, the default of a field."""
    if isinstance(item, Function):
        return f"{name}({_parameters(item)})"
    if isinstance(item, Class):
        bases = {str(base) for base in item.bases}
        called = "__init__" in item.all_members and not bases & {"Enum", "Protocol", "NamedTuple"}
        return f"{name}({_parameters(item)})" if called else name
    if isinstance(item, Attribute) and isinstance(item.parent, Class):
        defaults = {field.name: field.default for field in item.parent.parameters}
        if defaults.get(item.name) is not None:
            return f"{name} = {defaults[item.name]}"
    return name


def _parameters(item: Class | Function) -> str:
    """Return the parameters with their defaults, without annotations."""
    shown: list[str] = []
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        is_variadic = parameter.kind in MARKS
        has_star = any(text.startswith("*") for text in shown)
        if parameter.kind is ParameterKind.keyword_only and not has_star:
            shown.append("*")
        default = "" if parameter.required or is_variadic else f"={parameter.default}"
        shown.append(MARKS.get(parameter.kind, "") + parameter.name + default)
    return ", ".join(shown)


def _first_sentence(item: Object) -> str:
    """Return the first sentence of a docstring as Markdown."""
    if item.docstring is None:
        return ""
    paragraph = " ".join(item.docstring.value.strip().split("\n\n")[0].split())
    paragraph = ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", paragraph)
    return SENTENCE_END.split(paragraph.replace("``", "`"))[0]


def _commands() -> Iterator[str]:
    """Yield, for each command, what it does and a table of options for each group of them."""
    sys.path.insert(0, str(ROOT))
    from mlflow_project.cli.commands import commands

    for command in commands.commands.values():
        yield from (f"## {command.name}", "", cleandoc(str(command.help)), "")
        for argument in command.params:
            if argument.param_type_name == "argument":
                yield from (f"`{argument.metavar}` is a positional argument.", "")
        options = {name: option for option in command.params for name in option.opts}
        for panel in command.panels:
            yield from (f"### {command.name}: {panel.name}", "")
            yield from ("| option | type | default | description |", "|---|---|---|---|")
            for option in map(options.__getitem__, panel.options):
                text, _, default = (option.help or "").partition(" [default: ")
                shown = default.removesuffix("]") or option.show_default or "none"
                yield _row(f"`{option.opts[0]}`", option.type.name, f"`{shown}`", text)
            yield ""


def _row(*cells: str) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
