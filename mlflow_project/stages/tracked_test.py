"""A tracked range test of objects in hand: those of a script, a notebook, or a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlflow
from mlflow.data.dataset import Dataset
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lrrt_stage import (
    LRCurve,
    RangeTestOptions,
    Smoothing,
    StepOptions,
    SuggestionOptions,
    range_test,
    resolve_device,
)
from lrrt_stage.errors import describe
from lrrt_stage.measure.ramp_loop import require_trainable, with_changes
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from lrrt_stage.state.device import is_distributed
from mlflow_project.handoff.handoff import Handoff
from mlflow_project.handoff.publishing import publish_inputs
from mlflow_project.handoff.signature import sign_run
from mlflow_project.stages.lrrt import measure, publish_suggestion
from mlflow_project.stages.on_rank_0 import Progress, on_rank_0, require_equal_weights
from mlflow_project.tracking.connection import connect
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import stage_run
from pipeline import RangeTestPlan

__all__ = ["track_range_test"]


def track_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., Tensor] | None,
    batches: Iterable[Any],
    options: RangeTestOptions | None = None,
    *,
    step: StepOptions | None = None,
    smoothing: Smoothing | None = None,
    rule: str = "robust",
    name: str = "",
    dataset: Dataset | None = None,
    **arguments: Any,
) -> Handoff:
    """Run :func:`lrrt_stage.range_test` on objects in hand as a run, and return its hand-off.

    The run is a child of the active run; under ``mlflow run``, it belongs to the run of the entry
    point; otherwise it stands alone. It publishes what the stage ``lrrt`` does: the weights that
    the model has at the call, the curve, the suggestions, a picture, and how it was run. Model,
    optimizer, batches and random states are left as they were found, so that training can follow
    in the same script.

    Such a run has no recipe by which the objects could be made again: it can be compared, and
    :func:`load_handoff` gives the same hand-off in a different process, but ``check`` and the
    stages that train need a setup (``lrrt --setup``).

    Parameters
    ----------
    model, optimizer, loss_fn, batches, options, step, smoothing
        As in :func:`lrrt_stage.range_test`, or all of them from an adapter:
        ``track_range_test(**from_lightning(module, datamodule))``.
    rule
        The rule whose suggestion is used.
    name
        Name of the run, after ``lrrt``; by default that of the classes of model and optimizer.
    dataset
        A data set of ``mlflow.data``, which is logged as the input of the run.
    **arguments
        Further arguments of :func:`lrrt_stage.range_test`, such as ``probe`` and ``lr_end``.

    Returns
    -------
    Handoff
        Under ``torch.distributed`` all ranks call this, rank 0 publishes, and all ranks get the
        same hand-off. Of a model that FSDP shares, rank 0 alone gets the weights.

    Raises
    ------
    LRRTError
        As :func:`lrrt_stage.range_test`. The run is then FAILED, with the reason.
    NoSuggestion
        If no rule has a suggestion. The run keeps its weights and its curve.
    """
    changes = {k: arguments.pop(k) for k in list(arguments) if k in CHANGES}
    options, step = with_changes(options or RangeTestOptions(), step or StepOptions(), changes)
    plan = RangeTestPlan(options, smoothing or Smoothing(), SuggestionOptions(rule))
    require_trainable(model, optimizer)
    require(
        dataset is None or isinstance(dataset, Dataset),
        f"dataset is {describe(dataset)}: give a data set of mlflow.data, such as from_numpy(…)",
    )

    def run_test(progress: Progress | None = None) -> LRCurve:
        more = {"step": step, "smoothing": plan.smoothing, "progress": progress, **arguments}
        return range_test(model, optimizer, loss_fn, batches, options, **more)

    unwrapped = weights.unwrapped(model)
    state = weights.state_of(model)
    described = _described(unwrapped, optimizer, loss_fn, batches)
    words = f"{described['model']} {described['optimizer']}"

    def tracked(run_test: Callable[[Progress], LRCurve]) -> Handoff:
        if mlflow.active_run() is None:
            connect(None, None)
        with stage_run("lrrt", name or words) as run:
            device = arguments.get("device") or next(model.parameters()).device
            device = str(resolve_device(device))
            log_options(plan, step, **described, device=device)
            if dataset is not None:
                run.log_input(dataset)
            digest = "" if dataset is None else str(dataset.digest)
            publish_inputs(run.files, None, plan, state, digest, device, described)
            folder = run.begin_work()
            with run.bundle():
                reading = plan.read(measure(plan, folder, run_test))
                publish_suggestion(None, f"`{words}`", plan, reading, folder)
                sign_run()
        return Handoff(run.run_id, None, digest, device, state, plan, reading)

    if not is_distributed():
        return tracked(run_test)
    if not weights.has_shards(model):
        require_equal_weights(state)
    return on_rank_0(tracked, run_test, state)


CHANGES = frozenset([*RangeTestOptions.__dataclass_fields__, *StepOptions.__dataclass_fields__])
"""Options that can be passed by name."""


def _described(
    model: nn.Module, optimizer: Optimizer, loss_fn: Any, batches: Any
) -> dict[str, Any]:
    """Return what the objects are, as parameters of the run."""
    first = optimizer.param_groups[0]
    plain = {k: v for k, v in first.items() if type(v) in (int, float) and "lr" not in k}
    ranks = distributed.get_world_size() if is_distributed() else 1
    batch_size = getattr(batches, "batch_size", None)
    batch_size = batch_size * ranks if isinstance(batch_size, int) else None
    # Of a loader that Accelerate has prepared, which names the size of all ranks.
    batch_size = getattr(batches, "total_batch_size", batch_size)
    inner = getattr(optimizer, "optimizer", None)
    name = type(model).__name__
    return {
        "model": name.removeprefix("FSDP") if weights.has_shards(model) else name,
        "optimizer": type(inner if isinstance(inner, Optimizer) else optimizer).__name__,
        "loss": "own" if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__),
        **({"batch_size": batch_size} if isinstance(batch_size, int) else {}),
        **({"processes": ranks} if ranks > 1 else {}),
        "parameter_groups": len(optimizer.param_groups),
        **{f"optimizer.{name}": value for name, value in plain.items()},
    }
