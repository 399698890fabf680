"""Which names of a hand-off are trusted: those that the person at this command allows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lrrt_stage.errors import excerpt
from lrrt_stage.files import expanded
from lrrt_stage.secrets import is_hidden, is_reference
from lrrt_stage.settings import require
from pipeline.data.names import is_dataset_factory, is_factory
from pipeline.data.trust import NAMES, TRUST, NameFromRun

__all__ = ["names_of_run", "trusted_names"]


def trusted_names(trust: str | Iterable[str] | None = None) -> tuple[str, ...]:
    """Return what is trusted: the names of ``trust``, and those of the variable ``LRRT_TRUST``.

    Raises
    ------
    LRRTError
        For a name that is of no known form.
    """
    given = trust.split(",") if isinstance(trust, str) else list(trust or ())
    names = [*given, *os.environ.get(TRUST, "").split(",")]
    for name in names:
        require(
            isinstance(name, str) and (not name.strip() or _has_form(name.strip())),
            f"trust={excerpt(name)!r} names nothing that can be trusted: give a module (a.b), a "
            "function (a.b:c), a path (imagefolder:PATH, file:PATH) or a variable (env:NAME), "
            "several separated by commas",
        )
    return tuple(name.strip() for name in names if name.strip())


def names_of_run(task: Mapping[str, Any], run_id: str, trust: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a task that a run published, with their names marked as the run's.

    ``trust`` has what :func:`trusted_names` returned.
    """

    def mark(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [mark(item) for item in value]
        if is_reference(value) or is_hidden(value):
            return NameFromRun(value, run_id, is_reference(value) and value in trust)
        return value

    marked = dict(task)
    for name, value in task.items():
        if name.endswith("_args"):
            # They become names of parameters of runs.
            keys = value if isinstance(value, dict) else ()
            usable = all(re.fullmatch(r"[\w. :/-]{1,200}", key) for key in keys)
            require(usable, f"{name} has a key that is no name of an argument")
            marked[name] = mark(value)
    for kind in NAMES:
        named = marked.get(kind)
        # Weights of a run are read from the store that the hand-off itself was read from.
        of_a_run = kind == "init" and str(named).startswith("run:")
        if isinstance(named, str) and ":" in named and not of_a_run:
            is_code = _is_code(kind, named)
            trusted = _trusts_code(named, trust) if is_code else _trusts_path(named, trust)
            marked[kind] = NameFromRun(named, run_id, trusted, is_code)
    return marked


def _is_code(kind: str, name: str) -> bool:
    return is_dataset_factory(name) if kind == "dataset" else kind != "init" and is_factory(name)


def _has_form(name: str) -> bool:
    kind, colon, rest = name.partition(":")
    if colon:
        return bool(rest) and all(part.isidentifier() for part in kind.split("."))
    return is_factory(f"{name}:any")


def _trusts_code(name: str, trust: tuple[str, ...]) -> bool:
    """Return whether a factory, its module, or a package around it is trusted."""
    parts = name.partition(":")[0].split(".")
    modules = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool({name, *modules} & {*trust})


def _trusts_path(name: str, trust: tuple[str, ...]) -> bool:
    return any(_lies_below(name, folder) for folder in trust)


def _lies_below(name: str, trusted: str) -> bool:
    """Return whether a path is that of ``trusted``, or in this folder, also behind all links.

    A path that does not even begin with that of the folder is not looked up.
    """
    kind, colon, text = name.partition(":")
    trusted_kind, _, folder = trusted.partition(":")
    if not (colon and kind == trusted_kind and text and folder):
        return False
    try:
        path, root = (expanded(each).absolute() for each in (text, folder))
        if ".." in path.parts or not path.is_relative_to(root):
            return False
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, or no path
        return False
