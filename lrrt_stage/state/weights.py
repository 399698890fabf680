"""Initial weights: drawn from a seed, identified by a digest, saved, and loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from lrrt_stage.errors import LRRTError, excerpt, first_line, unknown_name
from lrrt_stage.files import replacing
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state.parts import parts_of
from lrrt_stage.state.preserve import preserved_modes, require_no_lazy
from lrrt_stage.state.snapshot import Snapshot
from lrrt_stage.state.tensors import apart, bits_of, is_sharded, shard_like, whole, without_repeats

__all__ = [
    "INITIALIZERS",
    "KERNEL_LAYERS",
    "State",
    "digest",
    "has_shards",
    "initialize",
    "load",
    "load_into",
    "save",
    "state_of",
    "unwrapped",
]

KERNEL_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose ``weight`` is a kernel: linear and convolutional layers, also transposed ones."""

State = Mapping[str, Tensor]
"""Names of parameters and persistent buffers -> tensors on the CPU."""

INITIALIZERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "kaiming_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=g),
    "kaiming_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
}
"""Name -> in-place initialiser of one weight (He et al. 2015, arXiv 1502.01852; Glorot & Bengio
2010). The name ``own`` stands for the weights from the constructor of the model."""


def initialize(model: nn.Module, scheme: str, seed: int) -> None:
    """Draw the weights of linear and convolutional layers from ``seed``; their biases become 0.

    The global random state is neither read nor changed. All other parameters (norm layers,
    embeddings, attention projections) and buffers keep the values from the constructor, so build
    the model under :func:`lrrt_stage.seeded`. ``scheme="own"`` changes nothing.

    A weight with a parametrization of torch (``torch.nn.utils.parametrizations``) is set through
    it: with ``weight_norm`` it is what was drawn, with ``spectral_norm`` it is scaled.

    Raises
    ------
    LRRTError
        If there is no such layer, or a weight that cannot be drawn: of a dtype without random
        numbers, computed by a hook, or with a parametrization that changes more than its scale.
    """
    if scheme == "own":
        return
    if scheme not in INITIALIZERS:
        raise unknown_name("init", scheme, [*INITIALIZERS, "own"])
    require_no_lazy(model, "the model")
    layers = [
        (name, module)
        for name, module in sorted(model.named_modules(), key=lambda named: named[0])
        if isinstance(module, KERNEL_LAYERS)
    ]
    require(
        bool(layers),
        f"init={scheme!r} draws the weights of linear and convolutional torch layers, and "
        f"{type(model).__name__} has none: use init='own', the weights of its constructor",
    )
    # Drawn on the CPU, so that the weights do not depend on the device.
    generator = torch.Generator().manual_seed(seed)
    before = Snapshot(parts_of([model]))
    with torch.no_grad():
        for name, module in layers:
            try:
                drawn = torch.empty(module.weight.shape, dtype=module.weight.dtype)
                _assign(module, "weight", INITIALIZERS[scheme](drawn, generator))
                if module.bias is not None:
                    _assign(module, "bias", torch.zeros_like(module.bias, device="cpu"))
            except (ValueError, RuntimeError, TypeError, AttributeError) as error:
                before.restore()  # the layers that were drawn already
                raise LRRTError(
                    f"init={scheme!r} cannot be applied to layer {name or 'the model'!r}, "
                    f"{type(module).__name__} ({first_line(error)}): use init='own'"
                ) from error


def _assign(layer: nn.Module, name: str, drawn: Tensor) -> None:
    """Set a weight or a bias, through its parametrization if it has one."""
    own = layer._parameters.get(name, layer._buffers.get(name))
    if own is not None:
        own.copy_(drawn)
        return
    require(is_parametrized(layer, name), f"its {name} is computed by a hook")
    setattr(layer, name, drawn.to(getattr(layer, name).device))
    parametrization = layer.get_submodule(f"parametrizations.{name}")
    with preserved_modes(parametrization.modules()):
        parametrization.train()
        # Spectral norm estimates the norm better at every use; its constructor takes 15 steps, too.
        for _ in range(15):
            used = getattr(layer, name).cpu().double()
    # A norm may scale what is drawn.
    similarity = torch.nn.functional.cosine_similarity(
        used.flatten(), drawn.double().flatten(), dim=0
    )
    require(
        float(similarity) > 0.999 or not (used.any() or drawn.any()),
        f"the parametrization of its {name} changes more than the scale of what is drawn",
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters and persistent buffers, on the CPU, contiguous.

    The names are those of the model itself, also where DDP wraps it. Where FSDP has given each rank
    a part, all ranks have to call this: rank 0 gets the whole, one tensor after the other, and the
    others get nothing, since a machine may not have the memory for more than one.

    Raises
    ------
    LRRTError
        If this is no model, or an entry of its ``state_dict`` is not a dense tensor.
    """
    own = unwrapped(model).state_dict()
    if not has_shards(model) or torch.distributed.get_rank() == 0:
        return {name: _dense(name, tensor) for name, tensor in own.items()}
    for name, tensor in own.items():
        _dense(name, tensor)
    return {}


def has_shards(model: nn.Module) -> bool:
    """Return whether each of several ranks has a part of the model's tensors, as with FSDP."""
    return any(map(is_sharded, unwrapped(model).state_dict().values()))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model, or the one that DDP wraps."""
    require_kind(isinstance(model, nn.Module), "the model", model, "pass an instance of nn.Module")
    return model.module if isinstance(model, DistributedDataParallel) else model


def _require_dense(name: str, value: Any) -> None:
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    require(
        dense and not (value.is_nested or value.is_quantized or value.is_meta),
        f"{name!r} in the model's state is no dense tensor with values ({type(value).__name__}), "
        "which can be neither identified nor saved: keep it out of the state_dict",
    )


def _dense(name: str, value: Any) -> Tensor:
    """Return a copy on the CPU, of which all ranks have all."""
    _require_dense(name, value)
    value = whole(value)
    return value.detach().to("cpu", copy=True).resolve_conj().resolve_neg().contiguous()


def digest(state: State) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes in name order, in hex.

    For every name, sorted: ``name``, ``dtype`` (as in ``float32``) and ``shape`` (comma
    separated), each followed by a zero byte, then the values as contiguous little-endian bytes.
    The digest does not depend on a file format.
    """
    require_kind(isinstance(state, Mapping), "the state", state, "pass model.state_dict()")
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = _dense(name, state[name])
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = ",".join(map(str, tensor.shape))
        sha.update(f"{name}\0{dtype}\0{shape}\0".encode())
        sha.update(bits_of(tensor).numpy().tobytes())
    return sha.hexdigest()


def save(state: State, path: str | Path) -> Path:
    """Write ``state`` as a safetensors file, which holds plain data and no code."""
    for name, tensor in state.items():
        _require_dense(name, tensor)
    try:
        with replacing(Path(path)) as part:
            # Tied weights are saved once per name.
            save_file(apart(state), part, metadata={"format": "pt"})
    except KeyError as error:
        raise LRRTError(
            f"safetensors cannot hold weights of {error}: convert them, for instance with "
            "model.to(torch.complex64)"
        ) from None
    return Path(path)


def load(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU."""
    # Unlike that of Path, it takes any name; a pipe or a device may have no end.
    if not os.path.isfile(path):
        raise LRRTError(f"there is no weights file {path}: check the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise LRRTError(
            f"{path} is not a readable safetensors file ({excerpt(error)}): save the weights with "
            "safetensors.torch.save_file; a pickle could run code, and is not read"
        ) from None


def load_into(model: nn.Module, state: State) -> None:
    """Copy ``state`` into ``model``, which keeps its device and layout.

    Where FSDP has given each rank a part of the model, all ranks have to call this, and rank 0 has
    the ``state``.

    A tensor that ``expand`` made, whose elements share memory, gets memory for each of them.

    Raises
    ------
    LRRTError
        With the first differences, if names, dtypes or shapes differ.
    """
    model = unwrapped(model)
    own = model.state_dict()
    for name, value in own.items():
        _require_dense(name, value)
    if has_shards(model) and torch.distributed.get_rank() > 0:  # what rank 0 sends has this form
        state = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in own.items()}
    differences = [
        f"{excerpt(name, 80)} is {_kind(state.get(name))} in the weights, "
        f"{_kind(own.get(name))} in the model"
        for name in [*own, *(name for name in state if name not in own)]
        if _kind(state.get(name)) != _kind(own.get(name))
    ]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    require(
        not differences,
        f"the weights do not fit the model: {'; '.join(differences[:3])}{more}: use the model and "
        "arguments that they were made with, the same names at every construction, and a model "
        "that is neither wrapped nor compiled",
    )
    for tensor in model.state_dict(keep_vars=True).values():
        if without_repeats(tensor).shape != tensor.shape:
            tensor.data = tensor.data.clone()
    try:
        model.load_state_dict({name: shard_like(state[name], own[name]) for name in own})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise LRRTError(f"the weights cannot be loaded: {reason}") from error


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
