"""The parts of an object: what it holds, what that holds, and how each is restored in place."""

from __future__ import annotations

import copy
import copyreg
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = [
    "CONTAINERS",
    "GENERATORS",
    "bits_of",
    "enclosed_by",
    "entries_of",
    "is_iterator",
    "known_to_functions",
    "parts_of",
    "preserved_parts",
    "with_holders",
]

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""Types of random generators."""
CONTAINERS = (list, deque, set, bytearray, OrderedDict, dict)
"""Types whose content changes in place, subclasses first."""
SOURCES = (DataLoader, Dataset, Sampler)
"""What batches are drawn from; see :func:`lrrt_stage.state.preserve.preserved_sources`."""
MAX_DEPTH = 11
"""Steps from the batches to a generator. From the tuple of batches and validation to
``wrapper.loader.dataset.dataset.dataset.transform.transforms[0].generator`` there are ten, and
Lightning adds one."""
MAX_ENTRIES = 10_000
"""Longer containers hold examples or words, which do not change."""
LIVE = (
    *("torch.nn.parallel.", "torch.distributed.", "torch.jit.", "torch._dynamo."),
    *("torch.utils.tensorboard.", "tensorboardX.", "wandb.", "lightning.pytorch.trainer."),
    *("lightning.pytorch.loggers.", "pytorch_lightning.trainer.", "pytorch_lightning.loggers."),
)
"""Packages of objects that belong to a process, a compiler or a thread. They are left alone, except
for optimizers."""
PLAIN_PACKAGES = ("builtins", "collections", "types", "queue", "argparse")
"""Packages of the standard library whose objects hold values; others, such as ``threading``, are
left alone."""
ITERATOR_PACKAGES = ("builtins", "itertools")
"""Packages of generators and of iterators over values; others, such as files, are left alone."""
VALUES = (int, float, bool, complex, str, bytes, type(None), torch.device, torch.dtype)
CALLED = (FunctionType, MethodType, partial)
"""Types of functions whose variables can be found."""
NUMBERS = (Tensor, np.ndarray, *GENERATORS, nn.Module)
"""Types of what functions compute with, unlike what they record."""
OPAQUE = (type, ModuleType, FunctionType, MethodType, _BaseDataLoaderIter)


def parts_of(
    roots: Iterable[Any], leave: tuple[type, ...] = SOURCES, longest: int = MAX_ENTRIES
) -> list[Any]:
    """Return ``roots``, their attributes and entries, theirs, and so on; each object once.

    They reach eleven steps, where all the modules in a module are one step away. Functions and
    containers of more than ``longest`` entries are not searched, nor are objects of the types
    ``leave``, which are left out.
    """
    # The objects are kept, so that no other object gets the same id meanwhile.
    seen: dict[int, Any] = {}
    level = list(roots)
    for _ in range(MAX_DEPTH + 1):
        new: list[Any] = []
        for part in level:
            if id(part) in seen or type(part) in VALUES or isinstance(part, leave):
                continue
            whole = part.modules() if isinstance(part, nn.Module) else (part,)
            found = {id(each): each for each in whole if id(each) not in seen}
            seen |= found
            new += found.values()
        level = [entry for part in new for entry in _entries(part, longest)]
    return list(seen.values())


def known_to_functions(parts: Iterable[Any]) -> list[Any]:
    """Return what the functions among ``parts``, such as hooks, were made with and compute with.

    These are tensors, arrays, random generators, and modules with their parts. Other objects that a
    function knows are left alone, because many are there to record what happens.
    """
    known: dict[int, Any] = {}
    new = list(parts)
    while functions := [part for part in new if isinstance(part, CALLED)]:
        found = parts_of(value for function in functions for value in _made_with(function))
        new = [part for part in found if id(part) not in known]
        known |= {id(part): part for part in new}
    return parts_of(part for part in known.values() if isinstance(part, NUMBERS))


@contextmanager
def preserved_parts(
    parts: Iterable[Any], skip: Collection[str] = (), changed: list[Any] | None = None
) -> Iterator[None]:
    """Restore each of ``parts`` in place at the end, except for the attributes in ``skip``.

    Restored are the values, the memory, the gradient and ``requires_grad`` of tensors; the values
    of arrays; the entries of containers; the states of random generators; and which attributes an
    object has, with the objects that they name. What entries and attributes hold is restored only
    if it is among the parts. The modes of modules are left alone. If a list ``changed`` is given,
    those of the parts that had changed are added to it.
    """

    def finish(part: Any, restore: Callable[[], object]) -> None:
        # A generator does not say whether it has changed, and counts as if it had.
        if restore() is not False and changed is not None:
            changed.append(part)

    with ExitStack() as stack:
        for part in parts:
            kind = _kind(part)
            if kind is Tensor:
                stack.callback(finish, part, _saved_tensor(part, changed is not None))
            elif kind is np.ndarray:
                if part.flags.writeable and not isinstance(part, np.memmap):
                    stack.callback(finish, part, partial(_refill_array, part, part.copy()))
            elif kind in GENERATORS:
                stack.callback(finish, part, _saved_generator(part))
            elif kind in CONTAINERS:
                stack.callback(finish, part, partial(_refill, part, kind, _content(part, kind)))
            if kind is not None and type(part) not in CONTAINERS:
                # The modes of modules are restored by whoever changes them.
                own = {*skip, "training"} if isinstance(part, nn.Module) else skip
                stack.callback(finish, part, partial(_restore_names, part, _names(part), own))
        yield


def with_holders(changed: Iterable[Any], parts: Iterable[Any]) -> list[Any]:
    """Return ``changed`` and what holds them: a list among ``parts``, and what has the list."""
    found = {id(part): part for part in changed}
    for _ in range(2):
        holds = {
            id(part): part for part in parts if any(id(entry) in found for entry in _entries(part))
        }
        found |= holds
    return list(found.values())


def is_iterator(part: Any) -> bool:
    """Return whether an object iterates over values, from a position that cannot be restored."""
    return isinstance(part, Iterator) and type(part).__module__ in ITERATOR_PACKAGES


def entries_of(parts: Iterable[Any]) -> list[Any]:
    """Return parts with what they hold at present, except for modules and parameters."""
    held = (entry for part in parts for entry in [part, *_entries(part)])
    own = {id(part) for part in parts}
    known = (nn.Module, nn.Parameter)
    found = (e for e in held if id(e) in own or not (type(e) in VALUES or isinstance(e, known)))
    return list({id(entry): entry for entry in found}.values())


def bits_of(tensor: Tensor, kind: torch.dtype = torch.uint8) -> Tensor:
    """Return the values of a dense tensor as bytes, or as integers of its size, contiguous."""
    dense = tensor.resolve_conj().resolve_neg().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(kind)


def _entries(part: Any, longest: int = MAX_ENTRIES) -> list[Any]:
    kind = _kind(part)
    entries = list(_names(part).values())
    if (kind in CONTAINERS or isinstance(part, (tuple, frozenset))) and len(part) <= longest:
        entries += dict.values(part) if isinstance(part, dict) else part
    elif kind is Tensor:
        hooks = (part._backward_hooks, getattr(part, "_post_accumulate_grad_hooks", None))
        entries += [each for each in hooks if each is not None]
    elif kind is None and isinstance(part, nn.Module):
        entries += [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return entries


def _made_with(function: Any) -> list[Any]:
    """Return the variables around a function, its defaults, and bound arguments."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*defaults, *enclosed_by(function)]


def enclosed_by(function: FunctionType) -> list[Any]:
    """Return the values of the variables around a function that it uses."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable without a value yet
            values.append(cell.cell_contents)
    return values


def _kind(part: Any) -> type | None:
    """Return the known type of a part, ``object`` for other ones; None if it is left alone."""
    return _known_type(type(part))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _known_type(kind: type) -> type | None:
    known = (*CONTAINERS, Tensor, np.ndarray, *GENERATORS)
    if base := next((base for base in known if issubclass(kind, base)), None):
        return base
    package = str(kind.__module__).partition(".")[0]
    if package in sys.stdlib_module_names:
        is_live = package not in PLAIN_PACKAGES
    else:
        is_live = f"{kind.__module__}.".startswith(LIVE) and not issubclass(kind, Optimizer)
    return None if is_live or issubclass(kind, OPAQUE) else object


def _names(part: Any) -> dict[str, Any]:
    """Return the attributes of an object, by name, in its ``__dict__`` and its ``__slots__``."""
    if _kind(part) is None or type(part) in CONTAINERS:
        return {}
    attributes = getattr(part, "__dict__", None)
    names = attributes.copy() if isinstance(attributes, dict) else {}
    for name in _slots(type(part)):  # type: ignore[arg-type]
        if hasattr(part, name):
            names[name] = getattr(part, name)
    return names


@lru_cache(maxsize=1024)
def _slots(kind: type) -> list[str]:
    return copyreg._slotnames(kind)  # type: ignore[attr-defined]


def _saved_tensor(tensor: Tensor, compare: bool) -> Callable[[], bool]:
    """Return a function that restores the present state of a tensor.

    It returns whether the values had changed, if it is to ``compare`` them on a device, too.
    """
    memory, is_leaf, requires_grad = tensor.data, tensor.is_leaf, tensor.requires_grad
    gradient = tensor.grad if is_leaf else None
    values = _without_repeats(memory).clone()

    def restore() -> bool:
        changed = compare and not _are_equal(_without_repeats(tensor.data), values)
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            if is_leaf and not tensor.is_leaf:
                tensor.detach_()
            # A move to a different device or layout has replaced the memory.
            tensor.data = memory
            present = _without_repeats(memory)
            # On a device, comparing would wait for it. On the CPU, the memory may be a file's.
            if present.device.type != "cpu" or not _are_equal(present, values):
                present.copy_(values)
            if is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = gradient
        return changed

    return restore


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two dense tensors have the same bits; False for tensors of other kinds."""
    if one.layout is not torch.strided or one.is_quantized or one.is_nested:
        return False
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(one.itemsize, torch.uint8)
    return torch.equal(bits_of(one, kind), bits_of(other, kind))


def _without_repeats(tensor: Tensor) -> Tensor:
    """Return a tensor without the repetitions that ``expand`` makes, which cannot be written."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _saved_generator(generator: Any) -> Callable[[], object]:
    """Return a function that restores the present state of a random generator."""
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    return partial(generator.set_state, generator.get_state())


def _refill_array(array: np.ndarray, saved: np.ndarray) -> bool:
    changed = array.tobytes() != saved.tobytes()
    np.copyto(array, saved)
    return changed


def _content(container: Any, kind: Any) -> list[Any]:
    """Return the entries, with the methods of the known type: those of a subclass may refuse."""
    if isinstance(container, dict):
        return [*dict.keys(container), *dict.values(container)]
    return list(kind.__iter__(container))


def _refill(container: Any, kind: Any, content: list[Any]) -> bool:
    present = _content(container, kind)
    # An unchanged container is not written to, since it may be iterated.
    if len(present) == len(content) and all(map(is_, present, content)):
        return False
    kind.clear(container)
    if isinstance(container, dict):
        half = len(content) // 2
        for key, value in zip(content[:half], content[half:], strict=True):
            kind.__setitem__(container, key, value)
    else:
        (kind.update if kind is set else kind.extend)(container, content)
    return True


def _restore_names(owner: Any, saved: dict[str, Any], skip: Collection[str]) -> bool:
    missing = object()
    present, slots = _names(owner), _slots(type(owner))  # type: ignore[arg-type]
    changed = [
        name
        for name in present | saved
        if name not in skip and present.get(name, missing) is not saved.get(name, missing)
    ]
    for name in changed:
        # Past the methods of a class, which may refuse or do more.
        if name in slots and name in saved:
            object.__setattr__(owner, name, saved[name])
        elif name in slots:
            object.__delattr__(owner, name)
        elif name in saved:
            vars(owner)[name] = saved[name]
        else:
            del vars(owner)[name]
    return bool(changed)
