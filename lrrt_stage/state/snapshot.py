"""Save what objects hold, and restore it in place."""

from __future__ import annotations

import copy
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import partial
from operator import is_
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrrt_stage.state.parts import (
    CONTAINERS,
    GENERATORS,
    MAX_ENTRIES,
    VALUES,
    assigned,
    attributes,
    kind_of,
    known_to_functions,
    parts_of,
    slots,
)

__all__ = ["Snapshot"]

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
"""Types by their size in bytes, as which bits are copied and compared. The largest is fastest."""
MISSING = object()

Restore = Callable[[], object]


class Snapshot:
    """The state of objects, which is restored in place and can be saved again and again.

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
        What functions among them know, such as hooks. This is there to compute with, or to record
        what happens. So containers keep what was added to them, and objects what is neither a
        number, a text, None, a tensor nor an array. Networks are restored as if they were parts.
    skip
        Names of attributes that are left alone.
    """

    def __init__(
        self, parts: Iterable[Any], known: Iterable[Any] = (), skip: Collection[str] = ()
    ) -> None:
        own = {id(part): part for part in parts}
        self.parts = own | {id(part): part for part in known}
        self.skip = skip
        # A list of limited length holds what is computed with, and no record.
        full = [
            part
            for part in self.parts.values()
            if isinstance(part, nn.Module) or getattr(part, "maxlen", None) is not None
        ]
        own |= {id(part): part for part in parts_of(full, found=own)}
        self.parts |= own
        everything = list(self.parts.values())
        self.modules = [part for part in everything if isinstance(part, nn.Module)]
        self.tensors = _Tensors([part for part in everything if kind_of(part) is Tensor])
        self.others = [
            part for part in everything if _is_array(part) or isinstance(part, GENERATORS)
        ]
        functions = [part for part in everything if isinstance(part, FunctionType)]
        self.slotted = [_Variables(p, True) for p in own.values() if kind_of(p) and slots(p)]
        only_known = [part for key, part in self.parts.items() if key not in own]
        self.variables = [
            _Variables(part) for part in [*only_known, *functions] if _has_variables(part)
        ]
        self.holders = [h for part in [*own.values(), *functions] for h in _holders(part)]
        self.contents = [_content(holder) for holder in self.holders]
        # Most containers of a network are empty, such as those for hooks.
        self.empty = [h for h in self.holders if type(h) in CONTAINERS and not h]
        self.filled = [i for i, h in enumerate(self.holders) if type(h) not in CONTAINERS or h]
        self.replaced: set[int] = set()
        self.save()

    def save(self) -> None:
        """Save the present state, in place of the one before."""
        for index in self._changed():
            self.contents[index] = _content(self.holders[index])
            self.replaced.add(index)
        self.filled += self.replaced.difference(self.filled)
        self.tensors.save()
        self.restores = [_saved_values(part) for part in self.others]
        for variables in (*self.slotted, *self.variables):
            variables.save()

    def added(self) -> Snapshot:
        """Return a snapshot of what the parts hold now, and did not hold when this one was made."""
        held = [entry for index in self.replaced for entry in self.contents[index]]
        held += [value for each in self.slotted for value in each.replaced()]
        parts = parts_of(held, found=self.parts)
        found = self.parts | {id(part): part for part in parts}
        values = [value for each in self.variables for value in each.replaced()]
        known = parts_of(values, found=found, functions=True)
        return Snapshot(parts, [*known_to_functions(parts, found), *known])

    def restore(self) -> None:
        """Restore the state that was saved last."""
        self.tensors.restore()
        for restore in self.restores:
            restore()
        for variables in (*self.slotted, *self.variables):
            variables.restore()
        for index in self._changed():
            _refill(self.holders[index], self.contents[index], self.skip)

    def __enter__(self) -> None:
        """Restore the state that was saved last when the block ends, also after an exception."""

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _changed(self) -> list[int]:
        """Return the indices of the containers whose entries are not those that were saved."""
        indices = range(len(self.holders)) if any(self.empty) else self.filled
        return [i for i in indices if not _holds(self.holders[i], self.contents[i])]


class _Tensors:
    """The state of tensors. Values are copied with one operation for each kind of tensor."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.marks: list[Any] = [None]

    def save(self) -> None:
        marks = [_mark(tensor) for tensor in self.tensors]
        if marks != self.marks:
            self.marks, self.memory = marks, [tensor.data for tensor in self.tensors]
            flat = [_flat(memory) for memory in self.memory]
            groups = defaultdict(list)
            for each in flat:
                if each is not None:
                    groups[each.device, each.dtype].append(each)
            self.groups = list(groups.values())
            self.values: list[Any] = [None for _ in self.groups]
            self.singular = [m for m, each in zip(self.memory, flat, strict=True) if each is None]
        self.gradients = [_gradient(tensor) for tensor in self.tensors]
        pairs = zip(self.groups, self.values, strict=True)
        self.values = [torch.cat(group, out=values) for group, values in pairs]
        self.copies = [_without_repeats(memory).clone() for memory in self.singular]

    def restore(self) -> None:
        saved = zip(self.tensors, self.marks, self.memory, self.gradients, strict=True)
        for tensor, mark, memory, gradient in saved:
            if _mark(tensor) != mark or _gradient(tensor) is not gradient:
                _, is_leaf, requires_grad, *_ = mark
                with torch.no_grad():
                    if is_leaf and not tensor.is_leaf:
                        tensor.detach_()
                    tensor.data = memory
                    if is_leaf:
                        tensor.requires_grad_(requires_grad)
                        tensor.grad = gradient
        for group, values in zip(self.groups, self.values, strict=True):
            pairs = list(zip(group, values.split([len(flat) for flat in group]), strict=True))
            # On a device, comparing would wait for it. On the CPU, the memory may be a file's.
            if values.device.type == "cpu":
                pairs = [(flat, value) for flat, value in pairs if not torch.equal(flat, value)]
            if pairs:
                flats, parts = map(list, zip(*pairs, strict=True))
                torch._foreach_copy_(flats, parts)
        # On the CPU, new memory takes longer to get than to fill. A device needs it for training.
        self.values = [each if each.device.type == "cpu" else None for each in self.values]
        for memory, copied in zip(self.singular, self.copies, strict=True):
            with torch.no_grad(), torch.inference_mode(memory.is_inference()):
                _without_repeats(memory).copy_(copied)


class _Variables:
    """What a function assigns, the variables of a class, entries, or attributes.

    They are restored ``always``, or only where they are computed with.
    """

    def __init__(self, part: Any, always: bool = False) -> None:
        self.part, self.always = part, always
        self.first = self.saved = _variables(part)

    def save(self) -> None:
        self.saved = _variables(self.part)

    def replaced(self) -> list[Any]:
        """Return the values that were saved last, and are not the first ones."""
        return [value for name, value in self.saved.items() if self.first.get(name) is not value]

    def restore(self) -> None:
        present = _variables(self.part)
        computes = _is_tensor if isinstance(self.part, (dict, list)) else _is_number
        for name in self.saved | present:
            before, after = self.saved.get(name, MISSING), present.get(name, MISSING)
            if before is not after and (self.always or (computes(before) and computes(after))):
                _assign(self.part, name, before)


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells whether a tensor has the same memory and form as before."""
    flags = (tensor.layout, tensor.is_leaf, tensor.requires_grad)
    if tensor.layout is not torch.strided or tensor.is_nested:
        return *flags, object()  # nothing tells
    return *flags, tensor.data_ptr(), tensor.shape, tensor.stride()


def _gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None


def _flat(memory: Tensor) -> Tensor | None:
    """Return the memory of a dense tensor as a vector of integers; None for other tensors."""
    if type(memory) is not Tensor or memory.layout is not torch.strided or memory.is_nested:
        return None
    if memory.is_quantized or memory.is_conj() or memory.is_neg() or memory.is_inference():
        return None
    if memory.device.type == "meta" or not memory.numel():
        return None
    steps = zip(memory.shape, memory.stride(), strict=True)
    # Repeats, as expand() makes them, take less memory than there are elements; gaps take more.
    length = 1 + sum((size - 1) * stride for size, stride in steps)
    if length > memory.numel():
        return None
    flat = memory.as_strided((length,), (1,))
    places = (length * memory.itemsize, memory.storage_offset() * memory.itemsize)
    fitting = (kind for size, kind in INTEGERS.items() if not any(p % size for p in places))
    return flat.view(next(fitting))


def _without_repeats(tensor: Tensor) -> Tensor:
    """Return a tensor without the repetitions that ``expand`` makes, which cannot be written."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _is_array(part: Any) -> bool:
    # Files are not written to.
    return isinstance(part, np.ndarray) and part.flags.writeable and not isinstance(part, np.memmap)


def _saved_values(generator: Any) -> Restore:
    """Return a function that restores an array or a generator."""
    if isinstance(generator, np.ndarray):
        return partial(np.copyto, generator, generator.copy())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, (np.random.Generator, np.random.BitGenerator)):
        bits: Any = getattr(generator, "bit_generator", generator)
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    return partial(generator.set_state, generator.get_state())


def _holders(part: Any) -> list[Any]:
    """Return the containers whose content is that of a part: itself, and its attributes."""
    kind = kind_of(part)
    holders = [part] if kind in CONTAINERS else []
    names = getattr(part, "__dict__", None)
    searched = (kind is not None and type(part) not in CONTAINERS) or isinstance(part, FunctionType)
    if searched and isinstance(names, dict):
        holders.append(names)
    return holders


def _container_type(container: Any) -> Any:
    return next(kind for kind in CONTAINERS if isinstance(container, kind))


def _content(container: Any) -> list[Any]:
    """Return the entries, with the methods of the known type: those of a subclass may refuse."""
    if isinstance(container, dict):
        return [*dict.keys(container), *dict.values(container)]
    return list(_container_type(container).__iter__(container))


def _holds(container: Any, content: list[Any]) -> bool:
    present = _content(container)
    return len(present) == len(content) and all(map(is_, present, content))


def _refill(container: Any, content: list[Any], skip: Collection[str]) -> None:
    kind = _container_type(container)
    if isinstance(container, dict):
        _refill_dict(container, kind, content, skip)
    elif kind is array:
        container[:] = array(container.typecode, content)
    else:
        kind.clear(container)
        (kind.update if kind is set else kind.extend)(container, content)


def _refill_dict(container: Any, kind: Any, content: list[Any], skip: Collection[str]) -> None:
    half = len(content) // 2
    keys, values = content[:half], content[half:]
    present = list(dict.keys(container))
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
        return bool(assigned(part.__code__))
    return isinstance(part, (type, dict, list)) or kind_of(part) is object


def _variables(part: Any) -> dict[Any, Any]:
    """Return them by name."""
    if isinstance(part, FunctionType):
        cells, known = _cells(part), part.__globals__
        names = assigned(part.__code__)
        values = [_value(cells[n]) if n in cells else known.get(n, MISSING) for n in names]
        pairs = zip(names, values, strict=True)
        return {name: value for name, value in pairs if value is not MISSING}
    if isinstance(part, dict):
        return dict(zip(dict.keys(part), dict.values(part), strict=True))
    if isinstance(part, list):
        return dict(enumerate(part)) if len(part) <= MAX_ENTRIES else {}
    return dict(vars(part)) if isinstance(part, type) else attributes(part)


def _cells(function: FunctionType) -> dict[str, CellType]:
    """Return the variables around a function, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _value(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # no value yet
        return MISSING


def _is_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and all(map(_is_tensor, value))
    return isinstance(value, (Tensor, np.ndarray))


def _is_number(value: Any) -> bool:
    return value is MISSING or type(value) in VALUES or _is_tensor(value)


def _assign(owner: Any, name: Any, value: Any) -> None:
    """Set a variable, or delete it if MISSING, past the methods of a class, which may refuse."""
    if isinstance(owner, FunctionType):
        if cell := _cells(owner).get(name):
            owner, name = cell, "cell_contents"
        else:
            owner = owner.__globals__
    elif kind_of(owner) is object and name not in slots(owner):
        owner = vars(owner)
    if isinstance(owner, (dict, list)):
        kind = _container_type(owner)
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
