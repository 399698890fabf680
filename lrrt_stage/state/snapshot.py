"""Save what objects hold, and restore it in place."""

from __future__ import annotations

import copy
import random
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from functools import partial
from operator import is_
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from lrrt_stage.state.parts import (
    CONTAINERS,
    GENERATORS,
    MAX_ENTRIES,
    MISSING,
    OF_A_PROCESS,
    VALUES,
    assigned,
    attributes,
    cell_value,
    is_own,
    kind_of,
    known_to_functions,
    namespace,
    parts_of,
    slots,
)
from lrrt_stage.state.tensors import Tensors

__all__ = ["Snapshot"]

COPIED = (np.ndarray, bytearray, array, torch.jit.ScriptModule, *GENERATORS)
"""Types of objects whose state neither entries nor attributes tell."""

Restore = Callable[[], object]


class Snapshot:
    """The state of objects, which can be saved again and again, and is then restored in place.

    Restored are the values, the memory, the gradient and ``requires_grad`` of tensors; the values
    of arrays; the entries of containers; the states of random generators; and which attributes an
    object has, with the objects that they name. What entries and attributes hold is restored only
    if it is among the parts.

    To save takes little longer than to copy the tensors: only what has been replaced since the
    snapshot was made is searched again.

    Parameters
    ----------
    parts
        What the model, the losses and the optimizer hold, see
        :func:`lrrt_stage.state.parts.parts_of`.
    known
        What functions among them know, such as hooks and losses. Code that was imported and files
        that were opened stay, since Python imports a module only once.
    keep_records
        Whether to keep what may be recorded in what is ``known``. Then attributes and entries are
        restored only if they were and are a number, a text, None, a tensor or an array, and lists,
        sets and queues keep what was added to them. Those that arrays were added to, such as a
        memory bank, and a ``deque`` of limited length are computed with, and are restored.
    skip
        Names of attributes that are left alone.
    """

    def __init__(
        self,
        parts: Iterable[Any],
        known: Iterable[Any] = (),
        keep_records: bool = True,
        skip: Collection[str] = (),
    ) -> None:
        own = {id(part): part for part in parts}
        others = {id(part): part for part in known if id(part) not in own}
        computed_with = filter(_is_computed_with, others.values())
        own |= {id(part): part for part in parts_of(computed_with, found=own)}
        self.parts, self.skip = own | others, skip
        everything = list(self.parts.values())
        self.modules = [part for part in everything if isinstance(part, nn.Module)]
        tensors = [part for part in everything if kind_of(part) is Tensor]
        self.tensors = Tensors([part for part in tensors if not is_lazy(part)])
        self.copied = [part for part in everything if isinstance(part, COPIED) and _changes(part)]
        recorded = {key for key in self.parts if keep_records and key not in own}
        self.variables = [
            _Variables(part, may_record=key in recorded)
            for key, part in self.parts.items()
            if _has_variables(part) or (key in recorded and kind_of(part) in (*CONTAINERS, object))
        ]
        self.holders = _holders(own.values())
        self.of_parts = len(self.holders)  # those that follow are known to functions
        if not keep_records:
            self.holders += _holders(part for key, part in self.parts.items() if key not in own)
        self.contents = [_content(holder) for holder in self.holders]
        # Most containers of a network are empty, such as those for hooks. To look at all of them at
        # once saves a quarter of an evaluation of a ResNet-18, forward pass excluded.
        self.empty = [h for h in self.holders if type(h) in CONTAINERS and not h]
        self.filled = [i for i, h in enumerate(self.holders) if type(h) not in CONTAINERS or h]
        self.replaced: set[int] = set()
        self.restores = [_saved_copy(part) for part in self.copied]

    def save(self) -> None:
        """Save the present state, in place of the one before."""
        for index in self._changed():
            self.contents[index] = _content(self.holders[index])
            self.replaced.add(index)
        self.filled += self.replaced.difference(self.filled)
        self.tensors.save()
        self.restores = [_saved_copy(part) for part in self.copied]
        for variables in self.variables:
            variables.save()

    def added(self) -> Snapshot:
        """Return a snapshot of what the parts hold now, and did not hold when this one was made."""
        # The entries of long containers are no parts.
        replaced = [index for index in self.replaced if len(self.holders[index]) <= MAX_ENTRIES]
        held = [entry for index in replaced for entry in self.contents[index]]
        held += [value for each in self.variables for value in each.replaced()]
        parts = parts_of(held, found=self.parts)
        known = known_to_functions(parts, self.parts | {id(part): part for part in parts})
        return Snapshot(parts, known, keep_records=False)

    def restore(self) -> None:
        """Restore the state that was saved last."""
        with ExitStack() as stack:  # so that one that fails does not keep others from it
            for index in self._changed():
                holder, content = self.holders[index], self.contents[index]
                if index < self.of_parts:
                    stack.callback(_refill, holder, content, self.skip)
                else:
                    stack.callback(_refill_known, holder, content)
            for restore in (*(each.restore for each in self.variables), *self.restores):
                stack.callback(restore)
            stack.callback(self.tensors.restore)

    def __enter__(self) -> None:
        """Restore the state that was saved last when the block ends, also after an exception."""

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _changed(self) -> list[int]:
        """Return the indices of the containers whose entries are not those that were saved."""
        indices = range(len(self.holders)) if any(self.empty) else self.filled
        return [i for i in indices if not _holds(self.holders[i], self.contents[i])]


class _Variables:
    """What a function assigns; the variables of a class or a Python module; attributes; entries."""

    def __init__(self, part: Any, may_record: bool) -> None:
        self.part, self.is_code = part, isinstance(part, (FunctionType, type))
        is_module, is_function = isinstance(part, ModuleType), isinstance(part, FunctionType)
        # Python does not find a submodule again whose variable is gone: only numbers are restored.
        self.may_record = is_module or (may_record and not is_function)
        self.is_container = self.may_record and kind_of(part) in CONTAINERS
        self.save()
        self.first = self.saved

    def save(self) -> None:
        self.saved = _variables(self.part)
        self.content = _content(self.part) if self.is_container else []

    def replaced(self) -> list[Any]:
        """Return the values that were saved last, and are not the first ones."""
        return [value for name, value in self.saved.items() if self.first.get(name) is not value]

    def restore(self) -> None:
        if self.is_container and any(map(_is_array, _added(self.part, self.content))):
            _refill(self.part, self.content, ())
            return
        present = _variables(self.part)
        # A list has the same entries at different places after an insertion.
        if isinstance(self.part, list) and len(present) != len(self.saved):
            return
        for name in self.saved | present:
            before, after = self.saved.get(name, MISSING), present.get(name, MISSING)
            if before is after or (self.is_code and _is_made_once(before, after)):
                continue
            if not self.may_record or (_is_state(before) and _is_state(after)):
                _assign(self.part, name, before)


def _changes(part: Any) -> bool:
    # A memory map is a file, the system's generator has no state, and the attributes of a module
    # that TorchScript has frozen cannot be listed.
    if isinstance(part, np.ndarray):
        return part.flags.writeable and not isinstance(part, np.memmap)
    if isinstance(part, torch.jit.ScriptModule):
        return hasattr(part, "_concrete_type")
    return not isinstance(part, random.SystemRandom)


def _saved_copy(part: Any) -> Restore:
    """Return a function that restores an object of the types :data:`COPIED`."""
    if isinstance(part, np.ndarray):
        return partial(_restore_array, part, part.copy())
    if isinstance(part, (bytearray, array)):
        return partial(_restore_bytes, part, part[:])
    if isinstance(part, random.Random):
        return partial(part.setstate, part.getstate())
    if isinstance(part, (np.random.Generator, np.random.BitGenerator)):
        bits: Any = getattr(part, "bit_generator", part)
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    if isinstance(part, torch.jit.ScriptModule):
        return _saved_attributes(part)
    return partial(part.set_state, part.get_state())


def _saved_attributes(scripted: Any) -> Restore:
    """Return a function that restores the attributes of a scripted module."""
    # The values of these are restored as those of other tensors.
    own = dict([*scripted.named_parameters(recurse=False), *scripted.named_buffers(recurse=False)])
    names = [name for name in scripted._concrete_type.get_attributes() if name not in own]
    values = {name: scripted._c.getattr(name) for name in names}
    values = tree_map_only(Tensor, torch.clone, values) | own

    def restore() -> None:
        for name, value in values.items():
            scripted._c.setattr(name, value)

    return restore


def _restore_array(part: np.ndarray, saved: np.ndarray) -> None:
    if part.shape != saved.shape:
        part.resize(saved.shape, refcheck=False)
    np.copyto(part, saved)


def _restore_bytes(part: Any, saved: Any) -> None:
    if part != saved:
        part[:] = saved


def _holders(parts: Iterable[Any]) -> list[Any]:
    """Return the containers among the parts, and the namespaces of the others."""
    parts = list(parts)
    named = map(namespace, parts)
    containers = [part for part in parts if kind_of(part) in CONTAINERS]
    return containers + [names for names in named if names is not None]


def _content(container: Any) -> list[Any]:
    """Return the entries, with the methods of the known type: those of a subclass may refuse."""
    kind: Any = kind_of(container)
    if isinstance(container, dict):
        return [*kind.keys(container), *kind.values(container)]
    return list(kind.__iter__(container))


def _holds(container: Any, content: list[Any]) -> bool:
    present = _content(container)
    return len(present) == len(content) and all(map(is_, present, content))


def _refill(container: Any, content: list[Any], skip: Collection[str]) -> None:
    kind: Any = kind_of(container)
    if isinstance(container, dict):
        _refill_dict(container, kind, content, skip)
    else:
        kind.clear(container)
        (kind.update if kind is set else kind.extend)(container, content)


def _refill_known(container: Any, content: list[Any]) -> None:
    """Refill a container that functions know, which may be a table of code, filled by imports."""
    if isinstance(container, dict):
        half = len(content) // 2
        saved = dict(zip(content[:half], content[half:], strict=True))
        pairs = zip(dict.keys(container), dict.values(container), strict=True)
        skip = {key for key, value in pairs if _is_made_once(saved.get(key, MISSING), value)}
        _refill(container, content, skip)
    else:
        made = [each for each in _added(container, content) if _is_made_once(MISSING, each)]
        _refill(container, [*content, *made], ())


def _added(container: Any, content: list[Any]) -> list[Any]:
    """Return the entries of a container that are not among those that were saved."""
    held = set(map(id, content))
    return [each for each in _content(container) if id(each) not in held]


def _is_made_once(before: Any, after: Any) -> bool:
    """Return whether code was imported or registered, or an object of the process made."""
    if isinstance(after, OF_A_PROCESS):
        return before is MISSING or before is None
    if isinstance(after, (type, FunctionType)):
        module = sys.modules.get(after.__module__)
        is_found = getattr(module, after.__qualname__, None) is after
    else:
        is_found = isinstance(after, ModuleType)
    # A variable that was None is a choice, which the next batch makes again.
    return is_found and before is MISSING


def _refill_dict(container: Any, kind: Any, content: list[Any], skip: Collection[str]) -> None:
    half = len(content) // 2
    keys, values = content[:half], content[half:]
    present = list(kind.keys(container))
    if not (len(present) == half and all(map(is_, present, keys))):
        skipped = [(key, dict.__getitem__(container, key)) for key in present if key in skip]
        kind.clear(container)
        for key, value in skipped:
            kind.__setitem__(container, key, value)
    for key, value in zip(keys, values, strict=True):
        if dict.get(container, key, MISSING) is not value and key not in skip:
            kind.__setitem__(container, key, value)


def _has_variables(part: Any) -> bool:
    if isinstance(part, FunctionType):
        code = part.__code__
        # One that names itself may set its own attributes.
        names_itself = part.__name__ in (*code.co_names, *code.co_freevars)
        return bool(assigned(code) or vars(part)) or names_itself
    return (isinstance(part, (type, ModuleType)) and is_own(part)) or bool(slots(part))


def _variables(part: Any) -> dict[Any, Any]:
    """Return the variables that ``part`` has, by name or index."""
    if isinstance(part, FunctionType):
        cells, known = _cells(part), part.__globals__
        names = assigned(part.__code__)
        values = [cell_value(cells[n]) if n in cells else known.get(n, MISSING) for n in names]
        found = dict(zip(names, values, strict=True))
        return vars(part) | {n: v for n, v in found.items() if v is not MISSING}
    kind = kind_of(part)  # which a proxy does not have from what it stands for
    if kind in (OrderedDict, dict):
        return dict(zip(dict.keys(part), dict.values(part), strict=True))
    if kind is list:
        return dict(enumerate(part)) if len(part) <= MAX_ENTRIES else {}
    if kind in (set, deque):
        return {}
    return dict(vars(part)) if isinstance(part, (type, ModuleType)) else attributes(part)


def _cells(function: FunctionType) -> dict[str, CellType]:
    """Return the variables around a function, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _is_computed_with(part: Any) -> bool:
    """Return whether a container or network is there to be computed with."""
    bounded = isinstance(part, deque) and part.maxlen is not None
    return bounded or isinstance(part, (nn.Module, Optimizer))


def _is_array(value: Any, nesting: int = 3) -> bool:
    """Return whether a value is an array of numbers, or a tuple or list of some."""
    if isinstance(value, (tuple, list)):  # which may hold itself
        return nesting > 0 and any(_is_array(each, nesting - 1) for each in value)
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _is_state(value: Any) -> bool:
    numbers = (Tensor, np.ndarray, np.generic)
    if isinstance(value, tuple):
        return all(map(_is_state, value))
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, numbers) for each in value)
    return value is MISSING or type(value) in VALUES or isinstance(value, numbers)


def _assign(owner: Any, name: Any, value: Any) -> None:
    """Set a variable, or delete it if MISSING, past the methods of a class, which may refuse."""
    if isinstance(owner, FunctionType):
        if cell := _cells(owner).get(name):
            owner, name = cell, "cell_contents"
        else:
            named = name in assigned(owner.__code__)
            owner = owner.__globals__ if named else vars(owner)
    elif kind_of(owner) is object and name not in slots(owner):
        owner = vars(owner)
    if isinstance(owner, (dict, list)):
        kind: Any = kind_of(owner)
        if value is MISSING:
            kind.__delitem__(owner, name)
        else:
            kind.__setitem__(owner, name, value)
        return
    base = type if isinstance(owner, type) else object
    if value is MISSING:
        base.__delattr__(owner, name)
    else:
        base.__setattr__(owner, name, value)
