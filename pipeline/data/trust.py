"""Names that a hand-off holds: of code, files and variables, which are used only where trusted.

Whoever may write to an experiment may write any name into a hand-off. So such a name keeps, all the
way to where it is used, that it comes from a run, and is refused there: unless the person at this
command has named the same thing, whose own text then takes its place, or trusts it.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from lrrt_stage.errors import LRRTError, excerpt
from lrrt_stage.secrets import is_reference
from lrrt_stage.settings import require

__all__ = [
    "NAMES",
    "TRUST",
    "NameFromRun",
    "require_trusted",
    "require_trusted_arguments",
]

NAMES = ("setup", "dataset", "model", "optimizer", "loss", "init")
"""Fields of a task that may name code or a path."""
TRUST = "LRRT_TRUST"
PROJECT = ("lrrt-stage", "lrrt_stage", "pipeline", "mlflow_project")
"""This project, as a distribution and as packages."""
TOOLS = ("torch", "torchvision", "mlflow", "optuna", "scikit-learn", "pip", "setuptools", "wheel")
"""Where their requirements are looked up as well, should this project not be installed itself."""


class NameFromRun(str):
    """A text of the hand-off ``run_id`` that names code, a path, or a variable.

    It is equal to the plain text, and stays what it is in copies and in other processes.
    """

    run_id: str
    trusted: bool
    is_code: bool
    """Whether it has the form ``package.module:factory``, and is not a path."""

    def __new__(  # noqa: D102
        cls, text: str, run_id: str, trusted: bool = False, is_code: bool = False
    ) -> NameFromRun:
        name = super().__new__(cls, text)
        name.run_id, name.trusted, name.is_code = run_id, trusted, is_code
        return name

    def __getnewargs__(self) -> tuple[str, str, bool, bool]:  # type: ignore[override]
        return str(self), self.run_id, self.trusted, self.is_code


def require_trusted(kind: str, name: str | None) -> None:
    """Raise LRRTError if ``name`` comes from a hand-off and is not trusted. Nothing is imported."""
    if not isinstance(name, NameFromRun):
        return
    module = name.partition(":")[0]
    chosen = f"{kind} {excerpt(name)!r} was chosen by run {excerpt(name.run_id)}"
    if not name.is_code:
        effect, remedy = "this path would be read here", f"pass --{kind} with a path of your own"
    else:
        effect = f"module {excerpt(module)!r} would run here"
        remedy = f"name it yourself with --{kind}"
    require(
        name.trusted,
        f"{chosen}, and {effect}: {remedy}, or trust it with --trust "
        f"{excerpt(module if name.is_code else name)} or the variable {TRUST}",
    )
    require(
        not (name.is_code and _is_library(module)),
        f"{chosen}, and module {excerpt(module)!r} is a library, whose functions may do anything: "
        f"{remedy}, since only modules of your own can be trusted",
    )


def require_trusted_arguments(kind: str, arguments: Any) -> None:
    """Raise LRRTError for a variable that a hand-off names and nobody trusts, or a hidden value."""
    if isinstance(arguments, Mapping):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        for value in arguments:
            require_trusted_arguments(kind, value)
    elif isinstance(arguments, NameFromRun) and not is_reference(arguments):
        raise LRRTError(
            f"{kind}_args of run {arguments.run_id} have a secret, which is not part of a "
            f"hand-off: pass --{kind}-args again, best with env:NAME for a variable that holds it"
        )
    elif isinstance(arguments, NameFromRun) and not arguments.trusted:
        raise LRRTError(
            f"{kind}_args {excerpt(arguments)!r} was chosen by run {arguments.run_id}, and would "
            f"read this variable here: pass --{kind}-args yourself, or trust it with --trust "
            f"{excerpt(arguments)} or in {TRUST}"
        )


@cache
def _libraries() -> frozenset[str]:
    """Return the modules of all packages that this project needs, with what those need."""
    needed: set[str] = set()
    further = [*PROJECT[:1], *TOOLS]
    while further:
        name = _canonical(further.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        further += [re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in requirements]
    installed = metadata.packages_distributions().items()
    return frozenset(
        module for module, names in installed if needed & {_canonical(each) for each in names}
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_library(module: str) -> bool:
    """Return whether a module is Python's, this project's, or of a package that this one needs."""
    top = module.partition(".")[0]
    python = {*sys.stdlib_module_names, *sys.builtin_module_names, builtins.__name__}
    return top in python or top in PROJECT or top in _libraries()
