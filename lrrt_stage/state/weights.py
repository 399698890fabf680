"""Initial weights: drawn from a seed, identified by a digest, saved, and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrrt_stage.errors import LRRTError, unknown_name

__all__ = [
    "INITIALIZERS",
    "KERNEL_LAYERS",
    "State",
    "digest",
    "initialize",
    "load",
    "load_into",
    "require_no_lazy",
    "save",
    "state_of",
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
    """
    if scheme == "own":
        return
    if scheme not in INITIALIZERS:
        raise unknown_name("init", scheme, [*INITIALIZERS, "own"])
    # Drawn on the CPU, so that the weights do not depend on the device.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in sorted(model.named_modules(), key=lambda named: named[0]):
            if isinstance(module, KERNEL_LAYERS):
                drawn = torch.empty(module.weight.shape, dtype=module.weight.dtype)
                module.weight.copy_(INITIALIZERS[scheme](drawn, generator))
                if module.bias is not None:
                    module.bias.zero_()


def require_no_lazy(model: nn.Module, what: str) -> None:
    """Raise LRRTError if a parameter or buffer of ``model`` has no shape yet (lazy modules)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise LRRTError(
                f"{what} has a lazy module with {name!r} without a shape: first run one batch "
                "through it, or use a module with given sizes"
            )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters and persistent buffers, on the CPU, contiguous."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }


def digest(state: State) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes in name order, in hex.

    For every name, sorted: ``name``, ``dtype`` (as in ``float32``) and ``shape`` (comma
    separated), each followed by a zero byte, then the values as contiguous little-endian bytes.
    The digest does not depend on a file format.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = ",".join(map(str, tensor.shape))
        sha.update(f"{name}\0{dtype}\0{shape}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def save(state: State, path: str | Path) -> Path:
    """Write ``state`` as a safetensors file, which holds plain data and no code."""
    # Tied weights are saved once per name: safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    save_file(copies, path, metadata={"format": "pt"})
    return Path(path)


def load(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU."""
    if not Path(path).is_file():
        raise LRRTError(f"there is no weights file {path}: check the path")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LRRTError(
            f"{path} is not a readable safetensors file ({error}): save the weights with "
            "safetensors.torch.save_file; a pickle could run code, and is not read"
        ) from None


def load_into(model: nn.Module, state: State) -> None:
    """Copy ``state`` into ``model``, which keeps its device and layout.

    An error lists the first differences, and says so if only the names differ, as with a
    constructor that numbers its layers.
    """
    own = model.state_dict()
    remedy = "use the model and arguments that the weights were made with"
    kinds, other_kinds = (sorted(map(_kind, tensors.values())) for tensors in (own, state))
    if set(own) != set(state) and kinds == other_kinds:
        remedy = "only names differ: make the model use the same names at every construction"
        if any(name.startswith(("module.", "_orig_mod.")) for name in own):
            remedy = "only names differ: load them before the model is wrapped or compiled"
    differences = [f"{name} is missing from the weights" for name in own if name not in state]
    differences += [f"{name} is not in the model" for name in state if name not in own]
    differences += [
        f"{name} is {_kind(state[name])} in the weights, {_kind(own[name])} in the model"
        for name in own
        if name in state and _kind(own[name]) != _kind(state[name])
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise LRRTError(
            f"the weights do not fit the model: {'; '.join(differences[:3])}{more}: {remedy}"
        )
    model.load_state_dict(dict(state))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
