"""Files with the state of a training: safetensors, which hold plain data and no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrrt_stage.errors import LRRTError, describe
from lrrt_stage.files import replacing
from lrrt_stage.state.tensors import apart

__all__ = ["read_checkpoint", "write_checkpoint"]

CONTENT = "content"
"""Key of the file's metadata with everything but the tensors, as JSON."""


def write_checkpoint(path: Path, content: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts and None.

    The file is complete, or is not there, even if the process ends here.

    Raises
    ------
    LRRTError
        If something else is in the content. An earlier file stays.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(content, tensors))
    with replacing(path) as part:
        save_file(apart(tensors), part, metadata={CONTENT: text})


def read_checkpoint(path: Path) -> Any:
    """Return what :func:`write_checkpoint` wrote, with tensors on the CPU."""
    with safe_open(path, "pt") as file:
        return _unpacked(json.loads(file.metadata()[CONTENT]), file.get_tensor)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, in which an object of one key stands for what JSON has not."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized:
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):  # whose keys may be numbers
        return {"dict": [[_packed(part, tensors) for part in item] for item in value.items()]}
    if type(value) is list or isinstance(value, tuple):
        kind = "list" if type(value) is list else "tuple"
        return {kind: [_packed(part, tensors) for part in value]}
    raise LRRTError(
        f"a checkpoint cannot hold {describe(value)}: keep it out of the state_dict of the model, "
        "the loss, or the optimizer"
    )


def _unpacked(value: Any, tensor: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensor(content)
    parts = [_unpacked({"list": part} if kind == "dict" else part, tensor) for part in content]
    return {"list": list, "tuple": tuple, "dict": dict}[kind](parts)
