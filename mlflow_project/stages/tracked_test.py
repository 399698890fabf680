"""A tracked range test of objects in hand: those of a script, a notebook, or a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlflow
from mlflow.data.dataset import Dataset
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lrrt_stage import (
    LRRTError,
    RangeTestOptions,
    Smoothing,
    StepOptions,
    SuggestionOptions,
    range_test,
)
from lrrt_stage.errors import first_line
from lrrt_stage.measure.ramp_loop import with_changes
from lrrt_stage.state import weights
from mlflow_project.handoff.handoff import Handoff, load_handoff
from mlflow_project.handoff.publishing import publish_inputs
from mlflow_project.stages.lrrt import Subject, measure, publish_suggestion
from mlflow_project.tracking.connection import connect
from mlflow_project.tracking.params import log_options
from mlflow_project.tracking.runs import stage_run, staged_files
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
        Under ``torch.distributed`` rank 0 publishes, and all ranks get the same hand-off.

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

    def run_test(progress: Callable[[int, int], None] | None = None) -> Any:
        more = {"step": step, "smoothing": plan.smoothing, "progress": progress, **arguments}
        return range_test(model, optimizer, loss_fn, batches, options, **more)

    def tracked() -> Handoff:
        if mlflow.active_run() is None:
            connect(None, None)
        words = f"{type(model).__name__} {type(optimizer).__name__}"
        with stage_run("lrrt", name or words) as run:
            device = str(next(model.parameters()).device)
            described = _described(model, optimizer, loss_fn, batches)
            log_options(run, plan, step, **described, device=device)
            if dataset is not None:
                mlflow.log_input(dataset, context="training")
            state = weights.state_of(model)
            with staged_files(run) as folder:
                digest = "" if dataset is None else str(dataset.digest)
                inputs = publish_inputs(folder, None, plan, state, digest, device, described)
                mlflow.set_tags(inputs)
                curve = measure(run, plan, folder, run_test)
                publish_suggestion(run, Subject(f"`{words}`"), plan, plan.read(curve), folder)
        return load_handoff(run.info.run_id)

    if not (distributed.is_available() and distributed.is_initialized()):
        return tracked()
    return _on_rank_0(tracked, run_test)


CHANGES = frozenset([*RangeTestOptions.__dataclass_fields__, *StepOptions.__dataclass_fields__])
"""Options that can be passed by name."""


def _on_rank_0(tracked: Callable[[], Handoff], run_test: Callable[[], Any]) -> Handoff:
    """Publish on rank 0 while the other ranks take part in the test; return its hand-off."""
    result: list[Any] = [None]
    try:
        result[0] = tracked() if distributed.get_rank() == 0 else run_test()
    except Exception as error:  # told to the other ranks, which would wait
        same = error if isinstance(error, LRRTError) else LRRTError(first_line(error))
        result[0] = same
    distributed.broadcast_object_list(result, src=0)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _described(
    model: nn.Module, optimizer: Optimizer, loss_fn: Any, batches: Any
) -> dict[str, Any]:
    """Return what the objects are, as parameters of the run."""
    first = optimizer.param_groups[0]
    plain = {k: v for k, v in first.items() if type(v) in (int, float) and "lr" not in k}
    batch_size = getattr(batches, "batch_size", None)
    return {
        "model": type(model).__name__,
        "optimizer": type(optimizer).__name__,
        "loss": "own" if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__),
        **({"batch_size": batch_size} if isinstance(batch_size, int) else {}),
        "parameter_groups": len(optimizer.param_groups),
        **{f"optimizer.{name}": value for name, value in plain.items()},
    }
