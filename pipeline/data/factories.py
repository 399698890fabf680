"""What the user makes with functions named ``package.module:factory``: setups, models, data, …"""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

import lrrt_stage
from lrrt_stage.errors import LRRTError, loader_error, unknown_name
from pipeline.data.splits import Data, Split

__all__ = [
    "DatasetFactory",
    "ModelFactory",
    "call",
    "call_factory",
    "cause_of",
    "is_factory",
    "load_factory",
    "require_name",
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


def is_factory(name: str) -> bool:
    """Return whether ``name`` has the form ``package.module:factory``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def require_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise LRRTError unless ``name`` has the form of a factory, or is one of the ``known``."""
    if not is_factory(name) and name not in (names := list(known)):
        raise unknown_name(kind, name, [*names, "package.module:factory"])


def load_factory(kind: str, name: str) -> Callable[..., Any]:
    """Return the factory ``name`` of a ``kind`` (setup, model, …), and import its module.

    This is the only place where a name becomes something to call.
    """
    module_name, _, attribute = name.partition(":")
    # The current folder is on the path, as with python -m.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an import runs the module, which may raise anything
        raise LRRTError(
            f"{kind} {name!r} cannot be imported ({cause_of(error)}): correct the name or the "
            "module; run from the folder that contains it, or put that folder on PYTHONPATH; and "
            "install what it imports"
        ) from error
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
        raise LRRTError(
            f"{kind} {name!r}: {getattr(module, '__file__', None) or module_name} has no function "
            f"or class {attribute!r}: {choice}define it there"
        )
    return factory


def call_factory(kind: str, name: str, arguments: Mapping[str, Any], *given: Any) -> Any:
    """Return what a factory returns for ``arguments``, after the objects ``given``."""
    return call(kind, name, load_factory(kind, name), arguments, *given)


def call(
    kind: str, name: str, function: Callable[..., Any], arguments: Mapping[str, Any], *given: Any
) -> Any:
    """Return what ``function``, a factory for example, returns for the objects and ``arguments``.

    An error is one line that names the function and the arguments.
    """
    try:
        signature = inspect.signature(function)
        signature.bind(*given, **arguments)
    except ValueError:  # a function written in C may have no signature
        pass
    except TypeError as error:
        raise LRRTError(
            f"{kind} {name!r} takes {signature}, {error}: check {kind}_args {dict(arguments)}"
        ) from error
    try:
        return function(*given, **arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        own, explained = is_factory(name), isinstance(error, LRRTError)
        if explained and not own:
            raise
        called = f", called with {dict(arguments)}" if arguments else ""
        remedy = f": check {kind}_args{', or correct the factory' if own else ''}"
        raise LRRTError(
            f"{kind} {name!r}{called}: {cause_of(error)}"
            if explained
            else f"{kind} {name!r} raised {cause_of(error)}{called}{remedy}"
        ) from error


def cause_of(error: BaseException) -> str:
    """Return an error in one line, with the file and line of the user's code that raised it."""
    kind, line = loader_error(error)
    if not isinstance(error, LRRTError):
        line = f"{kind}: {line}"
    if isinstance(error, SyntaxError):
        return f"{line} at {error.filename}:{error.lineno}"
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    ours = [str(Path(__file__).parents[1]), str(Path(lrrt_stage.__file__).parent)]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *installed, *ours))
    ]
    return f"{line} at {frames[-1].filename}:{frames[-1].lineno}" if frames else line
