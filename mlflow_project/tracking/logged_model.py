"""The trained model in MLflow: with its preprocessing, as an archive that loads anywhere."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from pipeline import PreparedTask

__all__ = ["log_model"]


class _Deployed(nn.Module):
    """A model that takes its dataset's inputs as they are: scaling and normalisation included."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, prepared: PreparedTask) -> None:
        super().__init__()
        self.model = model
        statistics = prepared.val_batches.statistics
        self.normalised = statistics is not None
        if statistics is not None:
            self.register_buffer("mean", statistics[0].cpu())
            self.register_buffer("std", statistics[1].cpu())

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        if self.normalised:
            inputs = (inputs - self.mean) / self.std
        return self.model(inputs)


def log_model(
    model: nn.Module, prepared: PreparedTask, register: str | None, lineage: Mapping[str, str]
) -> str:
    """Log the trained model with signature and input example; return its URI.

    With a name to ``register`` it becomes the next version of that model, whose tags and
    ``description`` are ``lineage``.

    It takes inputs as the dataset holds them (before normalisation), a batch of any size, and
    returns logits. It is a ``torch.export`` archive, which loads without this project and
    without pickle; a model that cannot be exported is pickled.
    """
    split = prepared.data.val
    example = (
        split[0][:2] if isinstance(split, tuple) else torch.stack([split[0][0], split[1][0]])
    ).cpu()
    deployed = _Deployed(model.cpu().to(memory_format=torch.contiguous_format), prepared).eval()
    with torch.no_grad():
        output = deployed(example)
    inputs = example.numpy()
    options: dict[str, Any] = {
        "name": "model",
        "input_example": inputs,
        "signature": ModelSignature(
            Schema([TensorSpec(inputs.dtype, (-1, *inputs.shape[1:]))]),
            Schema([TensorSpec(output.numpy().dtype, (-1, *output.shape[1:]))]),
        ),
        # Given, so that MLflow does not start a process to find them out.
        "pip_requirements": [f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
        "registered_model_name": register,
    }
    exports = _exports(deployed, example)
    info = mlflow.pytorch.log_model(
        deployed, serialization_format="pt2" if exports else "pickle", **options
    )
    if info.registered_model_version is not None:
        _tell_lineage(str(register), str(info.registered_model_version), lineage)
    return info.model_uri


def _tell_lineage(name: str, version: str, lineage: Mapping[str, str]) -> None:
    client = mlflow.MlflowClient()
    for tag, value in lineage.items():
        if tag == "description":
            client.update_model_version(name, version, description=value)
        else:
            client.set_model_version_tag(name, version, tag, value)


def _exports(model: nn.Module, example: Tensor) -> bool:
    """Tell whether torch can export the model. MLflow would leave a failed one behind if not."""
    try:
        with _quiet():
            # As MLflow exports it.
            torch.export.export(model, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    except Exception:  # whatever it raises for a model that it cannot trace
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch.export prints and logs of a model that it cannot trace."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
