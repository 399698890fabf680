"""The trained model in MLflow: with its preprocessing, as an archive that loads anywhere."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from lrrt_stage.errors import LRRTError, describe, first_line
from lrrt_stage.settings import require
from mlflow_project.tracking import console
from mlflow_project.tracking.record import active_record
from mlflow_project.tracking.senders import MODEL
from mlflow_project.tracking.store import ask
from pipeline import PreparedTask, Setup
from pipeline.task.prepared import errors_of

__all__ = ["log_model", "require_deployable"]

WEIGHTS_ARE_KEPT = (
    "its weights are an artifact of the run; give Setup(deployed=…) a model that can be exported"
)


def log_model(
    setup: Setup,
    register: str | None,
    lineage: Mapping[str, str],
    description: str,
    step: int,
) -> None:
    """Log the trained model of the active run with signature and input example.

    Its metrics are those of the validation that the run has logged at ``step``.

    With a name to ``register`` it becomes the next version of that model, with the tags ``lineage``
    and this ``description``.

    The model of the built-in setup takes inputs as the dataset holds them (before normalisation),
    a batch of any size, and returns logits. It is a ``torch.export`` archive, which loads without
    this project and without pickle. A model that torch cannot export and load again, or whose input
    is not one tensor, is not logged: its weights are an artifact of the run.
    """
    model = setup.model.cpu().to(memory_format=torch.contiguous_format)
    deployed, example, output = _deployed(setup, model)
    if reason := _obstacle(deployed, example, output):
        console.note(f"the model is not logged, {reason}: {WEIGHTS_ARE_KEPT}")
        return
    assert example is not None
    example = _two(example)
    inputs = example.numpy()
    record = active_record()
    try:
        mlflow.pytorch.save_model(
            deployed,
            record.folder / MODEL,
            input_example=inputs,
            signature=ModelSignature(
                Schema([TensorSpec(inputs.dtype, (-1, *inputs.shape[1:]))]),
                Schema([TensorSpec(output.numpy().dtype, (-1, *output.shape[1:]))]),
            ),
            # Given, so that MLflow does not start a process to find them out.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            serialization_format="pt2",
        )
    except (OSError, RuntimeError) as error:  # a full disk, also as torch says it
        raise LRRTError(
            f"the model cannot be written to {record.folder} ({first_line(error)}): free some "
            f"space; its weights are an artifact, and --resume {record.run_id} continues from here"
        ) from error
    record.log_model(step, register=register, lineage=dict(lineage), description=description)


def require_deployable(prepared: PreparedTask, register: str | None) -> None:
    """Raise LRRTError if ``deployed`` of a setup fails, or the model could not be registered.

    Inside a stage that works already, which has done this before, it does nothing.
    """
    if active_record().is_working:
        return
    if register is None and prepared.task.setup is None:
        return
    if register is not None:
        _require_registrable(register)
    setup = prepared.setup()
    with errors_of(prepared.task):
        deployed, example, output = _deployed(setup, setup.model)
    if register is not None and (reason := _obstacle(deployed, example, output)):
        raise LRRTError(
            f"the model cannot be registered, {reason}: give Setup(deployed=…) that returns a "
            "model without it, or leave register out"
        )


def _require_registrable(name: str) -> None:
    """Raise LRRTError if no version of the model ``name`` could be registered by this user."""
    client = mlflow.MlflowClient()
    require("'" not in name, f"register={name!r} cannot be searched for: give a name without '")
    try:
        try:
            model = ask(lambda: client.get_registered_model(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            # Made and removed again, so that a training that fails leaves none without a version.
            # Another process may do the same, and the answer to an earlier request be lost.
            with _suppress_code("RESOURCE_ALREADY_EXISTS"):
                ask(lambda: client.create_registered_model(name))
            if not ask(lambda: client.search_model_versions(f"name = '{name}'")):
                with _suppress_code("RESOURCE_DOES_NOT_EXIST"):
                    ask(lambda: client.delete_registered_model(name))
        else:
            ask(lambda: client.update_registered_model(name, model.description))
    except MlflowException as error:
        raise LRRTError(
            f"no model can be registered as {name!r} ({first_line(error)}): give a name without / "
            "and :, of a model that this login may change"
        ) from error


@contextmanager
def _suppress_code(code: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def _deployed(setup: Setup, model: nn.Module) -> tuple[nn.Module, Tensor | None, Any]:
    """Return what is logged of a model on the CPU, an example of its inputs, and its output."""
    example = None
    if setup.deployed is not None:
        made: Any = setup.deployed(model)
        pair = isinstance(made, (tuple, list)) and len(made) == 2
        require(
            pair and isinstance(made[0], nn.Module) and isinstance(made[1], Tensor),
            f"deployed returned {describe(made)}: return a module, and a tensor that is an example "
            "of its inputs",
        )
        model, example = made
    elif setup.loss_fn is not None:
        batch = next(iter(setup.val_batches or setup.train_batches))
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
            example = batch[0][:2].cpu()
    model = model.cpu().eval()
    with torch.no_grad():
        return model, example, None if example is None else model(example)


def _obstacle(deployed: nn.Module, example: Tensor | None, output: Any) -> str:
    """Return why a model cannot be logged; empty if it can."""
    if example is None or not isinstance(output, Tensor):
        return "since its input or output is not one tensor"
    if not _exports(deployed, _two(example)):
        return "since torch.export cannot export it, or not load it again"
    return ""


def _two(example: Tensor) -> Tensor:
    """Return a batch of two: from a single one, torch exports a model that takes only one."""
    return torch.cat([example] * 2)[:2]


def _exports(model: nn.Module, example: Tensor) -> bool:
    """Return whether torch can export the model, and load it. MLflow would log a failed model."""
    archive = io.BytesIO()
    # torch.export prints and logs much about a model that it cannot trace.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            # torch 2.6 counts exports as compilations of one function, and allows eight.
            torch.compiler.reset()
            # As MLflow exports it. torch 2.6 exports some models that it then cannot read.
            batches = [{0: torch.export.Dim.AUTO}]
            exported = torch.export.export(model, (example,), dynamic_shapes=batches)
            torch.export.save(exported, archive)
            archive.seek(0)
            torch.export.load(archive)
    except Exception:  # whatever it raises for such a model
        return False
    finally:
        logging.disable(disabled)
    return True
