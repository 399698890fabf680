"""Save the values, memory, gradients and form of tensors, and restore them in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Tensors",
    "apart",
    "bits_of",
    "is_sharded",
    "local_shard",
    "shard_like",
    "whole",
    "without_repeats",
]

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
"""Types by their size in bytes, as which bits are copied and compared. The largest is fastest."""


class Tensors:
    """The state of tensors. Values are copied with one operation for each kind of tensor."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = [tensor for tensor in tensors if not _is_freed(tensor)]
        self.forms: list[Any] = [None]
        self.save()

    def save(self) -> None:
        """Save the present state, in place of the one before."""
        forms = [_form(tensor) for tensor in self.tensors]
        if forms != self.forms:
            self.forms, self.memory = forms, [tensor.data for tensor in self.tensors]
            groups: dict[Any, dict[Any, Tensor]] = defaultdict(dict)
            flats = [_flat(local_shard(memory)) for memory in self.memory]
            for flat in flats:
                if flat is not None:
                    # The same memory once: FSDP holds a part, and tensors made of it.
                    groups[flat.device, flat.dtype][flat.data_ptr(), len(flat)] = flat
            self.groups = [list(group.values()) for group in groups.values()]
            pairs = zip(self.tensors, flats, strict=True)
            self.singular = [tensor for tensor, flat in pairs if flat is None]
        self.gradients = [_gradient(tensor) for tensor in self.tensors]
        # DDP writes to the parts of its buckets again; others are left alone while they are away.
        views = (each for each in self.gradients if each is not None and each._is_view())
        self.written = [(gradient, gradient.clone()) for gradient in views]
        self.values = [torch.cat(group) for group in self.groups]
        self.copies = [
            (t, t.data, without_repeats(local_shard(t.data)).clone()) for t in self.singular
        ]

    def restore(self) -> None:
        """Restore the state that was saved last."""
        with ExitStack() as stack:
            saved = zip(self.tensors, self.forms, self.memory, self.gradients, strict=True)
            for tensor, form, memory, gradient in saved:
                if _form(tensor) != form or _gradient(tensor) is not gradient:
                    stack.callback(_restore_form, tensor, form, memory, gradient)
            for tensor, memory, values in self.copies:
                stack.callback(setattr, tensor, "data", memory)
                stack.callback(_restore_values, without_repeats(local_shard(memory)), values)
            for group, values in zip(self.groups, self.values, strict=True):
                stack.callback(_restore_group, group, values)
            for gradient, values in self.written:
                stack.callback(_restore_values, gradient, values)
        self.values, self.copies, self.written = [], [], []  # the training needs the memory


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells whether a tensor has the same memory and form as before."""
    flags = (tensor.is_leaf, tensor.requires_grad, tensor.dtype, tensor.layout)
    if tensor.layout is not torch.strided or tensor.is_nested:
        return flags  # nothing tells
    return *flags, local_shard(tensor.detach()).data_ptr(), tensor.shape, tensor.stride()


def _is_freed(tensor: Tensor) -> bool:
    """Return whether a tensor's memory is gone, as that of parameters which FSDP had gathered."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return False
    return tensor.numel() > 0 and not tensor.is_nested and not tensor.untyped_storage().nbytes()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each of several ranks holds a part of a tensor, as with FSDP."""
    # By its method: to import the class takes half a second.
    return hasattr(tensor, "to_local")


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with its parts on all ranks, which all have to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, in parts like those of an ``other``."""
    if not is_sharded(other) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = other.device_mesh, other.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(other.device), mesh, placements)


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


def bits_of(tensor: Tensor) -> Tensor:
    """Return the values of a dense tensor as bytes, contiguous."""
    dense = tensor.resolve_conj().resolve_neg().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory, which safetensors refuses.

    Only those are copied that do, or that are on another device.
    """
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def without_repeats(tensor: Tensor) -> Tensor:
    """Return a tensor without the repetitions that ``expand`` makes, which cannot be written."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _restore_form(
    tensor: Tensor, form: tuple[Any, ...], memory: Tensor, gradient: Tensor | None
) -> None:
    is_leaf, requires_grad, *_ = form
    with torch.no_grad():
        if is_leaf and tensor._is_view():
            # It cannot be detached in place, nor replaced while others refer to it.
            with suppress(RuntimeError):
                torch.utils.swap_tensors(tensor, tensor.detach())
        elif is_leaf:
            tensor.detach_()
        tensor.data = memory
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient


def _restore_group(group: list[Tensor], values: Tensor) -> None:
    pairs = list(zip(group, values.split([len(flat) for flat in group]), strict=True))
    # On a device, comparing would wait for it. On the CPU, the memory may be a file's.
    if values.device.type == "cpu":
        pairs = [(flat, value) for flat, value in pairs if not torch.equal(flat, value)]
    if pairs:
        flats, parts = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(flats, parts)


def _restore_values(memory: Tensor, values: Tensor) -> None:
    dense = memory.layout is torch.strided and not memory.is_nested and not memory.is_quantized
    if dense and memory.device.type == "cpu" and torch.equal(bits_of(memory), bits_of(values)):
        return
    with torch.no_grad(), torch.inference_mode(memory.is_inference()):
        memory.copy_(values)
