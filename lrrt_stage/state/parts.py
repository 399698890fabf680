"""The parts of an object: what it holds, what that holds, and so on."""

from __future__ import annotations

import copyreg
import dis
import os
import random
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from io import IOBase
from itertools import filterfalse, islice
from logging import Logger
from pathlib import Path
from queue import Queue
from threading import Thread
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = [
    "CONTAINERS",
    "GENERATORS",
    "MAX_ENTRIES",
    "MISSING",
    "OF_A_PROCESS",
    "VALUES",
    "assigned",
    "attributes",
    "cell_value",
    "is_iterator",
    "is_large",
    "is_own",
    "kind_of",
    "known_to_functions",
    "namespace",
    "parts_of",
    "slots",
]

GENERATORS = (
    *(torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
    random.Random,
)
"""Types of random generators."""
CONTAINERS = (list, deque, set, OrderedDict, dict)
"""Types whose content changes in place, subclasses first."""
MAX_ENTRIES = 10_000
"""Longer containers hold examples or words, which do not change."""
MAX_OBJECTS = 100
"""Longer tables of a Python module with tuples or objects hold examples, too."""
MAX_ELEMENTS = 2**20
"""Larger tensors and arrays of a dataset or a loader are data, not states."""
LIVE = (
    *("torch.nn.parallel.", "torch.distributed.", "torch.jit.", "torch._dynamo."),
    *("torch.utils.tensorboard.", "tensorboardX.", "wandb.", "lightning.pytorch.trainer."),
    *("lightning.pytorch.loggers.", "pytorch_lightning.trainer.", "pytorch_lightning.loggers."),
    *("mlflow.", "optuna.", "tqdm.", "rich.", "matplotlib."),
)
"""Packages of objects that belong to a process, a compiler or a thread, or that show or record what
happens. They are left alone, except for optimizers."""
PLAIN_PACKAGES = ("builtins", "collections", "types", "queue", "argparse", "weakref", "array")
"""Packages of the standard library whose objects hold values; others, such as ``threading``, are
left alone."""
ITERATOR_PACKAGES = ("builtins", "itertools")
"""Packages of generators and of iterators over values, beside those of loaders. Others, such as
files, are left alone."""
MISSING = object()
"""In place of a value where there is none."""
VALUES = (int, float, bool, complex, str, bytes, type(None), torch.device, torch.dtype)
UNSEARCHED = (*VALUES, *weakref.ProxyTypes)
"""Types of what holds nothing, and of what stands for an object that may not exist any more."""
METHODS = (MethodType, BuiltinMethodType)
"""Types of functions that are bound to an object."""
CALLED = (FunctionType, *METHODS, partial)
"""Types of functions whose variables can be found."""
NUMBERS = (Tensor, np.ndarray, *GENERATORS, nn.Module, Optimizer)
"""Types of what is computed with."""
OF_A_PROCESS = (IOBase, Logger, Thread)
"""Types of objects that a process opens or starts."""
OPAQUE = (
    *(type, ModuleType, FunctionType, *METHODS),
    *(_BaseDataLoaderIter, *OF_A_PROCESS),
)


def parts_of(
    roots: Iterable[Any],
    leave: tuple[type, ...] = (DataLoader,),
    longest: int = MAX_ENTRIES,
    functions: bool = False,
    found: Mapping[int, Any] = MappingProxyType({}),
) -> list[Any]:
    """Return ``roots``, their attributes and entries, theirs, and so on; each object once.

    Containers of more than ``longest`` entries are not searched. Left out are objects of the types
    ``leave``, the examples of a dataset (large tensors and arrays, by themselves or in lists), and
    parts that were ``found`` before, by id.

    With ``functions``, what functions and classes know is searched, too: the variables around a
    function, its defaults, the arguments that are bound to it, the variables of Python modules that
    it names, and the methods and variables of a class. Code of installed libraries is not searched:
    it does not know what it is used for.
    """
    # The objects are kept, so that no other object gets the same id meanwhile.
    seen: dict[int, Any] = {}
    level = [(part, False) for part in roots]
    while level:
        new: list[tuple[Any, bool]] = []
        for part, of_dataset in level:
            if id(part) in seen or id(part) in found:
                continue
            if type(part) in UNSEARCHED or isinstance(part, leave):
                continue
            if of_dataset and is_large(part):
                continue
            for each in part.modules() if isinstance(part, nn.Module) else (part,):
                if id(each) not in seen and id(each) not in found:
                    seen[id(each)] = each
                    in_dataset = of_dataset and isinstance(each, (tuple, list))
                    new.append((each, in_dataset or isinstance(each, Dataset)))
        level = [
            (entry, of_dataset)
            for part, of_dataset in new
            for entry in _entries(part, longest, functions)
        ]
    return list(seen.values())


def known_to_functions(parts: Collection[Any], found: Mapping[int, Any] | None = None) -> list[Any]:
    """Return what is known to the functions among ``parts``, and to the classes of the others.

    Parts that were ``found`` before, by id, are left out; by default, these are ``parts``.
    """
    found = {id(part): part for part in parts} if found is None else found
    kinds = dict.fromkeys(kind for part in parts for kind in type(part).__mro__)
    classes = [*filter(is_own, kinds)]
    functions = [part for part in parts if isinstance(part, CALLED)]
    known = [entry for each in (*classes, *functions) for entry in _known_to(each)]
    # A queue that only functions know may be shared with a thread.
    return parts_of([*classes, *known], (DataLoader, Queue), functions=True, found=found)


def is_iterator(part: Any) -> bool:
    """Return whether an object iterates over values, from a position that cannot be restored."""
    over_values = type(part).__module__ in ITERATOR_PACKAGES
    return isinstance(part, _BaseDataLoaderIter) or (isinstance(part, Iterator) and over_values)


def is_large(value: Any) -> bool:
    """Return whether a value of a dataset or a loader is a tensor or an array of data."""
    if isinstance(value, Tensor):
        is_learned = value.requires_grad or is_lazy(value)
        return not is_learned and value.numel() > MAX_ELEMENTS
    return isinstance(value, np.ndarray) and value.size > MAX_ELEMENTS


def kind_of(part: Any) -> type | None:
    """Return the known type of a part, ``object`` for other ones; None if it is left alone."""
    return _known_type(type(part))  # type: ignore[arg-type]


def attributes(part: Any) -> dict[str, Any]:
    """Return the attributes of an object, by name, in its ``__dict__`` and its ``__slots__``."""
    values = {name: _attribute(part, name) for name in slots(part)}
    found = {name: value for name, value in values.items() if value is not MISSING}
    return (namespace(part) or {}) | found


def namespace(part: Any) -> dict[str, Any] | None:
    """Return the ``__dict__`` of an object; None if it is left alone or has none."""
    searched = kind_of(part) is not None and type(part) not in CONTAINERS
    names = _attribute(part, "__dict__") if searched else None
    return names if isinstance(names, dict) else None


def slots(part: Any) -> list[str]:
    """Return the names of the attributes that are not in the ``__dict__`` of an object."""
    return [] if kind_of(part) is None else _slot_names(type(part))  # type: ignore[arg-type]


def cell_value(cell: CellType) -> Any:
    """Return the value of a variable around a function; MISSING if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


@lru_cache(maxsize=4096)
def assigned(code: CodeType) -> frozenset[str]:
    """Return the variables outside a function that it, or a function in it, assigns."""
    inner = [assigned(each) for each in code.co_consts if isinstance(each, CodeType)]
    own = _names_in(code, "STORE_GLOBAL", "STORE_DEREF")
    return frozenset(own).union(*inner).difference(code.co_cellvars)


@lru_cache(maxsize=4096)
def _imports(code: CodeType) -> frozenset[str]:
    """Return the modules that a function, or a function in it, imports when it runs."""
    inner = [_imports(each) for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(_names_in(code, "IMPORT_NAME")).union(*inner)


@lru_cache(maxsize=4096)
def _used(code: CodeType) -> frozenset[str]:
    """Return the names that a function, or a function in it, may look up in its Python module."""
    inner = [_used(each) for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(code.co_names).union(*inner)


def _names_in(code: CodeType, *instructions: str) -> list[str]:
    """Return the names in these instructions of a function, and not of the functions in it."""
    # Most functions have none, and to decode them takes time.
    if not any(dis.opmap[each] in code.co_code[::2] for each in instructions):
        return []
    return [each.argval for each in dis.get_instructions(code) if each.opname in instructions]


def _attribute(part: Any, name: str) -> Any:
    """Return an attribute past the methods of a class, which may do more; or MISSING."""
    try:
        return object.__getattribute__(part, name)
    except AttributeError:
        return MISSING


def _entries(part: Any, longest: int, functions: bool) -> list[Any]:
    kind = kind_of(part)
    entries = list(attributes(part).values())
    if (kind in CONTAINERS or isinstance(part, (tuple, frozenset))) and len(part) <= longest:
        items = [*dict.keys(part), *dict.values(part)] if isinstance(part, dict) else part
        entries += filterfalse(_is_library_code, items) if functions else items
    elif kind is Tensor:
        hooks = (part._backward_hooks, getattr(part, "_post_accumulate_grad_hooks", None))
        entries += [each for each in hooks if each is not None]
    elif kind is np.ndarray and part.dtype == object and part.size <= longest:
        entries += part.ravel().tolist()
    elif kind is None and isinstance(part, nn.Module):
        entries += [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    elif functions and kind is None:
        entries += _known_to(part)
    return entries


def _known_to(function: Any) -> list[Any]:
    """Return what a function or a class knows."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, BuiltinMethodType):
        return [function.__self__]
    if isinstance(function, FunctionType):
        around = [*map(cell_value, function.__closure__ or ())]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return [*around, *defaults, *vars(function).values(), *_named_in(function, around)]
    if isinstance(function, type) and is_own(function):
        own = [each for value in vars(function).values() for each in _functions_of(value)]
        return [*filter(is_own, own)]
    return []


def _named_in(function: FunctionType, around: list[Any]) -> list[Any]:
    """Return the variables of Python modules that a function names, and the user's modules."""
    known, names = function.__globals__, _used(function.__code__)
    if not _is_users(str(known.get("__name__"))):
        return []
    package = known.get("__package__")
    imported = [each for n in _imports(function.__code__) for each in (n, f"{package}.{n}")]
    found = [known[name] for name in names if name in known]
    found += [*around, *(sys.modules[name] for name in imported if name in sys.modules)]
    modules: set[int] = set()
    for value in found:  # which grows
        if isinstance(value, ModuleType) and id(value) not in modules and is_own(value):
            modules.add(id(value))
            found += [vars(value)[name] for name in names if name in vars(value)]
    return [*filter(is_own, found)]


def _functions_of(value: Any) -> list[Any]:
    """Return the functions in what a class holds; other values as they are."""
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, cached_property):
        return [value.func]
    return [value.__func__ if isinstance(value, (staticmethod, classmethod)) else value]


def _is_library_code(value: Any) -> bool:
    return isinstance(value, (type, FunctionType)) and not is_own(value)


def is_own(value: Any) -> bool:
    """Return whether code, or what a variable holds, is the user's: not of an installed library."""
    if type(value) in UNSEARCHED:
        return False
    if isinstance(value, METHODS):
        return is_own(value.__self__)
    if isinstance(value, ModuleType):
        return _is_users(str(vars(value).get("__name__")))
    if isinstance(value, (type, FunctionType)):
        return _is_users(str(value.__module__))
    if issubclass(type(value), (*CONTAINERS, tuple, frozenset)):  # and no proxy of one
        entries = islice(dict.values(value) if isinstance(value, dict) else value, MAX_ENTRIES)
        some = (*NUMBERS, *VALUES, *CONTAINERS)
        return len(value) <= MAX_OBJECTS or any(isinstance(each, some) for each in entries)
    if isinstance(value, (*NUMBERS, partial)) or is_iterator(value):
        return True
    package = str(type(value).__module__)
    return kind_of(value) is object and (package in PLAIN_PACKAGES or _is_users(package))


@lru_cache(maxsize=1024)
def _is_users(module: str) -> bool:
    """Return whether a Python module is the user's: not one of Python, installed, or of this."""
    if module in ("__main__", "__mp_main__"):
        return True  # whatever runs it
    if _is_pythons(module) or module.partition(".")[0] in ("torch", __name__.partition(".")[0]):
        return False
    return not {"site-packages", "dist-packages"}.intersection(_file_of(module).parts)


@lru_cache(maxsize=1024)
def _is_pythons(module: str) -> bool:
    """Return whether a Python module is of the standard library, and not one of the same name."""
    package = module.partition(".")[0]
    file = _file_of(package)
    # Modules that are not written in Python may have no file, or one elsewhere.
    return package in sys.stdlib_module_names and (
        file.suffix != ".py" or file.is_relative_to(Path(os.__file__).parent)
    )


def _file_of(module: str) -> Path:
    return Path(getattr(sys.modules.get(module), "__file__", None) or "")


@lru_cache(maxsize=1024)
def _slot_names(kind: type) -> list[str]:
    return copyreg._slotnames(kind)  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _known_type(kind: type) -> type | None:
    known = (*CONTAINERS, Tensor, np.ndarray, *GENERATORS)
    if base := next((base for base in known if issubclass(kind, base)), None):
        return base
    module = str(kind.__module__)
    if _is_pythons(module):
        is_live = module.partition(".")[0] not in PLAIN_PACKAGES
    else:
        is_live = f"{module}.".startswith(LIVE) and not issubclass(kind, Optimizer)
    return None if is_live or issubclass(kind, OPAQUE) else object
