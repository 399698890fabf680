"""Leave a model, its optimizer, and the sources of randomness exactly as they were found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from lrrt_stage.errors import LRRTError
from lrrt_stage.state.parts import (
    CONTAINERS,
    GENERATORS,
    attributes,
    is_iterator,
    is_large,
    kind_of,
    known_to_functions,
    parts_of,
)
from lrrt_stage.state.randomness import preserved_randomness
from lrrt_stage.state.snapshot import Snapshot

__all__ = [
    "Evaluation",
    "generators",
    "move_optimizer",
    "preserved",
    "preserved_modes",
    "preserved_sources",
    "require_no_lazy",
    "set_training",
]

MAX_LOADER_ENTRIES = 64
"""Longer lists hold examples, not parts of a loader."""


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Any,
    device: torch.device,
    others: Iterable[Any] = (),
) -> Iterator[None]:
    """Restore everything when the block ends, also after an exception.

    Of ``model``, ``others`` (such as losses), the optimizer, and all that they hold: tensors
    (values, device, layout, gradients, ``requires_grad``), modes, attributes, containers, random
    generators. So an optimizer inside the optimizer and the helper objects of a model are restored
    too. Of what functions and classes know, such as hooks and a loss function: all but what they
    may record, see :class:`lrrt_stage.state.snapshot.Snapshot`. Of the batches: what
    :func:`preserved_sources` restores. Left alone are loaders that a model holds, the examples of a
    dataset, objects of a process, such as a logger, and the entries of containers with more than
    :data:`~lrrt_stage.state.parts.MAX_ENTRIES`.

    Inside the block, the tensors of the optimizer are on ``device``, and a ``DataLoader`` starts
    worker processes of its own. Persistent ones that already run are set aside, with their random
    states and the batches that they have read ahead, and continue afterwards.

    Raises
    ------
    LRRTError
        If an iterator is among the parts of the model, of ``others``, or of the optimizer, or one
        of these or their functions know a network with a parameter without a shape.
    """
    sharded = _sharded([model, *others])
    _reshard(sharded)
    parts = parts_of([model, *others, optimizer])
    for part in filter(_has_position, parts):
        raise LRRTError(
            f"the model, a loss or the optimizer holds an iterator ({type(part).__name__}), whose "
            "position cannot be restored: keep a counter or a list in its place",
        )
    known = known_to_functions(parts)
    for part in (*parts, *known):
        if isinstance(part, nn.Module):
            require_no_lazy(part, f"a {type(part).__name__} that takes part")
    for name in dict.fromkeys(type(part).__name__ for part in filter(_has_position, known)):
        warnings.warn(
            f"a function of the model, a loss or a hook reads an iterator ({name}), whose position "
            "is not restored: keep a counter or a list in its place",
            stacklevel=4,
        )
    snapshot = Snapshot(parts, known)
    loaders = [part for part in _loader_parts(batches) if isinstance(part, DataLoader)]
    found = next(model.parameters()).device
    with (
        preserved_sources(batches),
        preserved_modes(snapshot.modules),
        snapshot,
        ExitStack() as stack,
    ):
        for tensor in snapshot.tensors.tensors:
            if tensor.is_leaf:
                tensor.grad = None
        move_optimizer(optimizer, found, device)
        for loader in loaders:
            stack.callback(setattr, loader, "_iterator", loader._iterator)
            loader._iterator = None
        stack.callback(_reshard, sharded)
        yield


def _has_position(part: Any) -> bool:
    # A generator that has ended does not change any more.
    return is_iterator(part) and getattr(part, "gi_frame", part) is not None


@contextmanager
def preserved_sources(batches: Any) -> Iterator[None]:
    """Restore everything that decides which batches are drawn next.

    These are the global random states of Python, NumPy and torch; the random generators among the
    parts of ``batches``; the attributes of its samplers, loaders and datasets, also those of a
    class of the user's, such as a count of epochs; the numbers that its transforms and functions
    know; and the gradients of examples that require one.
    """
    held = (*CONTAINERS, Tensor, np.ndarray)
    data = (*held, tuple, nn.Module)
    parts = _loader_parts(batches)
    owners: list[Any] = [
        part
        for part in parts
        if isinstance(part, (*GENERATORS, Iterable, Dataset)) and not isinstance(part, data)
    ]
    loaders = [part for part in owners if isinstance(part, DataLoader)]
    # Their gradients are accumulated.
    learned = [
        part for part in parts if isinstance(part, Tensor) and part.is_leaf and part.requires_grad
    ]
    # The sampler of a loader may be of any class.
    owners += [sampler for loader in loaders for sampler in (loader.sampler, loader.batch_sampler)]
    restored = [
        *owners,
        *learned,
        *(part.grad for part in learned if part.grad is not None),
        *(
            entry
            for owner in owners
            for entry in attributes(owner).values()
            if isinstance(entry, held) and not is_large(entry)
        ),
    ]
    others = [part for part in parts if kind_of(part) is object] + known_to_functions(parts)
    # Persistent worker processes that start inside the block are kept.
    with preserved_randomness(), Snapshot(restored, others, skip={"_iterator"}):
        yield


def generators(batches: Any) -> list[torch.Generator]:
    """Return the torch generators among the parts of ``batches``, each once, in a fixed order."""
    return [part for part in _loader_parts(batches) if isinstance(part, torch.Generator)]


def _loader_parts(batches: Any) -> list[Any]:
    return parts_of([batches], leave=(), longest=MAX_LOADER_ENTRIES)


def move_optimizer(optimizer: Optimizer, found: torch.device, device: torch.device) -> None:
    """Move the tensors that an optimizer holds on the device ``found`` to ``device``."""
    for part in parts_of([optimizer]):
        # A counter (0-dimensional) stays on the CPU if the optimizer keeps it there.
        if isinstance(part, Tensor) and part.dim() and part.device == found:
            part.data = part.data.to(device)


class Evaluation:
    """Evaluates networks without gradients, in evaluation mode, and restores them.

    All that they hold and that their functions know is restored, such as running statistics or a
    hidden state that is carried from batch to batch, so that the training that follows is the same.
    A compiled model is evaluated without its compiled code: to compile it for other sizes would
    change what training runs, and with it the last bits of the losses. In a loop, only what has
    been replaced since the first evaluation is searched again.
    """

    def __init__(self, networks: Iterable[Any]) -> None:
        self.networks = list(networks)
        self.sharded = _sharded(self.networks)
        self.first: Snapshot | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Evaluate in the block."""
        _reshard(self.sharded)
        if self.first is None:
            parts = parts_of(self.networks)
            self.first = Snapshot(parts, known_to_functions(parts), keep_records=False)
        else:
            self.first.save()
        added = self.first.added()
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            self.first,
            added,
            # Innermost, so that the snapshots find the modes as they were.
            preserved_modes([*self.first.modules, *added.modules]),
        ):
            for network in self.networks:
                if isinstance(network, nn.Module):
                    network.eval()
            try:
                yield
            finally:
                _reshard(self.sharded)


def _sharded(networks: Iterable[Any]) -> list[Any]:
    """Return the modules of which FSDP has given a part to each rank."""
    modules = (each for each in networks if isinstance(each, nn.Module))
    # By its name: to import the class takes half a second.
    parts = (part for module in modules for part in module.modules())
    return [part for part in parts if any(c.__name__ == "FSDPModule" for c in type(part).__mro__)]


def _reshard(sharded: Iterable[Any]) -> None:
    """Let go of the parameters that FSDP has gathered for a forward pass.

    Until then, its modules hold others in place of those that the optimizer has.
    """
    for module in sharded:
        module.reshard()


@contextmanager
def preserved_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore which of the ``modules`` are in training mode."""
    # TorchScript removes the mode of a module that it freezes.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


def set_training(model: nn.Module) -> None:
    """Put a model into training mode, except for submodules that are in evaluation mode on purpose.

    They are on purpose unless the whole model is in evaluation mode.
    """
    frozen = [module for module in model.modules() if not getattr(module, "training", True)]
    on_purpose = len(frozen) < len(list(model.modules()))
    model.train()
    if on_purpose:
        for module in frozen:
            module.training = False


def require_no_lazy(model: nn.Module, what: str) -> None:
    """Raise LRRTError if a parameter or buffer of ``model`` has no shape yet (lazy modules)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise LRRTError(
                f"{what} has a lazy module with {name!r} without a shape: first run one batch "
                "through it, or use a module with given sizes"
            )
