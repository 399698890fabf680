"""What the user makes with functions named ``package.module:factory``: setups, models, data, …"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn

import lrrt_stage
from lrrt_stage.errors import LRRTError, excerpt, loader_error
from lrrt_stage.secrets import is_reference, masked, remember_secrets
from lrrt_stage.settings import require
from pipeline.data.names import is_factory
from pipeline.data.splits import Data, Split
from pipeline.data.trust import NameFromRun, require_trusted, require_trusted_arguments

__all__ = [
    "DatasetFactory",
    "ModelFactory",
    "call",
    "call_factory",
    "cause_of",
    "import_factory",
    "load_factory",
    "without_folders",
]

ModelFactory: TypeAlias = Callable[..., nn.Module]
"""A function or class that ``model`` may name. It is called with ``model_args`` as keyword
arguments and returns a new model, which turns a batch of inputs ``[b, …]`` into logits
``[b, classes]``, or numbers ``[b, outputs]``. It draws initial weights from torch's global random
state only, makes all parameters in the constructor, and gives them the same names at every call."""

DatasetFactory: TypeAlias = Callable[..., Data | tuple[Split, Split]]
"""A function that ``dataset`` may name. It is called with ``dataset_args`` as keyword arguments
and returns the same data at every call: a :class:`~pipeline.data.Data`, or a training and a
validation split, whose classes are then counted."""


SHORTEST = 8
"""Characters of a variable's value that is taken for a secret wherever it stands."""


def import_factory(kind: str, name: str) -> ModuleType:
    """Import and return the module of the factory ``name`` of a ``kind`` (setup, model, …).

    This is the only place where a name becomes code that runs.

    Raises
    ------
    LRRTError
        If it comes from a hand-off and is not trusted, or cannot be imported.
    """
    require_trusted(kind, name)
    # The current folder is on the path, as with python -m.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name.partition(":")[0])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import runs the module, which may raise anything
        raise LRRTError(
            f"{kind} {name!r} cannot be imported ({cause_of(error, name)}): correct the name or "
            "the module; run from the folder that contains it, or put that folder on PYTHONPATH; "
            "and install what it imports"
        ) from error


def load_factory(kind: str, name: str) -> Callable[..., Any]:
    """Return the factory ``name`` of a ``kind`` (setup, model, …), and import its module.

    This is the only place where a name becomes something to call.
    """
    module_name, _, attribute = name.partition(":")
    module = import_factory(kind, name)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module_name
        ]
        # A large module defines hundreds.
        public = [name for name in own if not name.startswith("_")]
        closest = get_close_matches(attribute, public, n=3, cutoff=0)
        choice = f"choose one that it defines, such as {', '.join(closest)}, or " if closest else ""
        file = getattr(module, "__file__", None) or module_name
        raise LRRTError(
            f"{kind} {name!r}: {_place(file, isinstance(name, NameFromRun))} has no function or "
            f"class {attribute!r}: {choice}define it there"
        )
    # A module that is trusted for what it defines has everything that it imports as well.
    require(
        not isinstance(name, NameFromRun) or getattr(factory, "__module__", None) == module_name,
        f"{kind} {excerpt(name)!r} was chosen by run {getattr(name, 'run_id', '')}, and is not "
        f"defined in the module that it names: name it yourself with --{kind}",
    )
    return factory


def call_factory(kind: str, name: str, arguments: Mapping[str, Any], *given: Any) -> Any:
    """Return what a factory returns for ``arguments``, after the objects ``given``."""
    return call(kind, name, load_factory(kind, name), arguments, *given)


def call(
    kind: str, name: str, function: Callable[..., Any], arguments: Mapping[str, Any], *given: Any
) -> Any:
    """Return what ``function``, a factory for example, returns for the objects and ``arguments``.

    A text ``env:NAME`` among the arguments stands for the value of this variable. An error is one
    line that names the function and the arguments, without secrets.
    """
    shown = excerpt(masked(dict(arguments)))
    require_trusted_arguments(kind, arguments)
    arguments = _from_environment(kind, dict(arguments))
    remember_secrets(arguments)
    try:
        signature = inspect.signature(function)
        signature.bind(*given, **arguments)
    except ValueError:  # a function written in C may have no signature
        pass
    except TypeError as error:
        raise LRRTError(
            f"{kind} {name!r} takes {signature}, {excerpt(error)}: check {kind}_args {shown}"
        ) from error
    try:
        return function(*given, **arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        own, explained = is_factory(name), isinstance(error, LRRTError)
        if explained and not own:
            raise
        called = f", called with {shown}" if arguments else ""
        remedy = f": check {kind}_args{', or correct the factory' if own else ''}"
        raise LRRTError(
            f"{kind} {name!r}{called}: {cause_of(error, name)}"
            if explained
            else f"{kind} {name!r} raised {cause_of(error, name)}{called}{remedy}"
        ) from error


def cause_of(error: BaseException, name: str | None = None) -> str:
    """Return an error in one line, with the file and line of the user's code that raised it.

    Where that is a factory whose ``name`` comes from a hand-off, no folder of this machine is told.
    """
    private = isinstance(name, NameFromRun)
    kind, line = loader_error(error)
    if not isinstance(error, LRRTError):
        line = f"{kind}: {excerpt(line)}"
    if isinstance(error, SyntaxError):
        return f"{line} at {_place(error.filename or '?', private)}:{error.lineno}"
    ours = [str(Path(__file__).parents[1]), str(Path(lrrt_stage.__file__).parent)]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *_installed(), *ours))
    ]
    line = without_folders(line) if private else line
    if not frames:
        return line
    return f"{line} at {_place(frames[-1].filename, private)}:{frames[-1].lineno}"


def without_folders(text: str) -> str:
    """Return a text in which the paths of this machine are names of files.

    An error is also kept with the run, where others read it.
    """
    folders = {*_installed(), tempfile.gettempdir(), str(Path.home()), os.getcwd()} - {"/", ""}
    for folder in sorted(folders, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?:/[^\s'\"/:,;()]+)*/(?=[^\s'\"/:,;()])", "", text)
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "…", text)
    return text


def _place(file: str, private: bool) -> str:
    return Path(file).name if private else file


def _installed() -> list[str]:
    return [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]


def _from_environment(kind: str, value: Any) -> Any:
    """Return a value with the variables that it names, and remember theirs, which are secrets."""
    if isinstance(value, Mapping):
        return {key: _from_environment(kind, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_from_environment(kind, item) for item in value)
    if not is_reference(value):
        return value
    variable = value.partition(":")[2]
    found = os.environ.get(variable)
    if found is None:
        raise LRRTError(
            f"{kind}_args has {value!r}, and the variable {variable} is not set: set it, or give "
            "the value itself"
        )
    # A shorter one may be any word; under the key of a secret, it is remembered all the same.
    remember_secrets(found, secret=len(found) >= SHORTEST)
    return found
