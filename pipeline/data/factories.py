"""Models and datasets of the user's own, named ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn

import lrrt_stage
from lrrt_stage.errors import LRRTError, first_line, unknown_name
from pipeline.data.splits import Data, Split

__all__ = ["DatasetFactory", "ModelFactory", "call_factory", "is_factory"]

ModelFactory: TypeAlias = Callable[..., nn.Module]
"""A function, or a class, that ``model`` may name. It is given ``model_args`` by name and returns
a new model: from a batch of inputs ``[b, …]`` it makes logits ``[b, classes]``. It draws initial
weights from torch's global random state only, makes all parameters in the constructor, and names
them alike at every call."""

DatasetFactory: TypeAlias = Callable[..., Data | tuple[Split, Split]]
"""A function that ``dataset`` may name. It is given ``dataset_args`` by name and returns the same
data at every call: a :class:`~pipeline.data.Data`, or training and validation split, whose classes
are then counted."""


def is_factory(name: str) -> bool:
    """Tell whether ``name`` has the form ``package.module:factory``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def call_factory(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """Return what the factory makes of ``arguments``; the current folder is on the path.

    Raises
    ------
    LRRTError
        If the module or the factory is not there or cannot be called, does not take these
        arguments, or raises; the message says where, and the cause is chained.
    """
    source = f"{kind} {name!r}"
    factory = _find(source, name)
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some that are written in C have none
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise LRRTError(
                f"{source} {error}, it takes {_takes(signature)}: check {kind}_args "
                f"{dict(arguments)}"
            ) from error
    try:
        return factory(**arguments)
    except Exception as error:
        raise LRRTError(
            f"{source} raised {type(error).__name__}: {first_line(error)} (at {_place(error)}, "
            f"called with {dict(arguments)}): mend it there, or check {kind}_args"
        ) from error


def _find(source: str, name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        # A console script, unlike ``python -m``, does not look in the current folder.
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _no_module(source, module_name, error) from error
    except Exception as error:  # an import runs the module, which may raise anything
        raise LRRTError(
            f"{source} cannot be imported ({type(error).__name__}: {first_line(error)}, at "
            f"{_place(error)}): mend the module"
        ) from error
    if not hasattr(module, attribute):
        file = getattr(module, "__file__", None) or f"the folder {module_name}"
        names = _callables(module)
        if not names:
            raise LRRTError(
                f"{source}: {file} has neither functions nor classes: correct the name, or rename "
                "the module if another of this name was meant"
            )
        raise LRRTError(f"{source}: {unknown_name('name', attribute, names)} (in {file})")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise LRRTError(
            f"{source} is of type {type(factory).__name__} and cannot be called: name a function "
            "or a class"
        )
    return factory


def _no_module(source: str, module_name: str, error: ModuleNotFoundError) -> LRRTError:
    missing = error.name or module_name
    if not f"{module_name}.".startswith(f"{missing}."):
        return LRRTError(
            f"{source} cannot be imported, it needs {missing!r} (at {_place(error)}): install it, "
            "or put the folder that holds it on PYTHONPATH"
        )
    package_name, _, last = missing.rpartition(".")
    path = getattr(sys.modules.get(package_name), "__path__", None)
    siblings = [each.name for each in pkgutil.iter_modules(path)] if path is not None else []
    if siblings:
        return LRRTError(f"{source}: {unknown_name(f'module of {package_name}', last, siblings)}")
    if module_name.endswith(".py"):
        without = module_name.removesuffix(".py")
        return LRRTError(f"{source} names a file: name its module, {without}, without .py")
    return LRRTError(
        f"{source} cannot be imported, there is no module {missing!r} in {Path.cwd()} or on the "
        f"path: run from the folder that holds {module_name.split('.')[0]!r}, or put that folder "
        "on PYTHONPATH"
    )


def _callables(module: ModuleType) -> list[str]:
    """Return the public functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]


def _takes(signature: inspect.Signature) -> str:
    return ", ".join(
        each.name if each.default is each.empty else f"{each.name}={each.default!r}"
        for each in signature.parameters.values()
    ) or "no arguments"  # fmt: skip


def _place(error: Exception) -> str:
    """Return file and line where the user's own code raised ``error``, or passed it on."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    foreign = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    foreign += [Path(__file__).parent, Path(lrrt_stage.__path__[0])]
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and not any(folder in Path(frame.filename).parents for folder in foreign)
    ]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
