"""The learning-rate range test."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.curve.lr_curve import LRCurve, Stop
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import unknown_name
from lrrt_stage.measure.evaluations import (
    Probe,
    Validation,
    probe_iterations,
    validation_losses,
)
from lrrt_stage.measure.loss_recorder import LossRecorder
from lrrt_stage.measure.options import RangeTestOptions, StepOptions
from lrrt_stage.measure.ramps import epoch_length
from lrrt_stage.measure.step import (
    BatchLoss,
    TrainingStep,
    batch_loss_of,
    endless,
    layout_of,
    lr_ratios,
    require_batches,
    require_optimizer,
)
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state.device import deterministic, resolve_device
from lrrt_stage.state.parts import known_to_functions, parts_of
from lrrt_stage.state.preserve import preserved, require_no_lazy, set_training
from lrrt_stage.state.randomness import seeded

__all__ = ["RangeTestInterrupted", "curve_of", "range_test", "require_trainable", "with_changes"]


class RangeTestInterrupted(KeyboardInterrupt):
    """Ctrl-C during a range test. ``curve`` holds what was measured until then."""

    def __init__(self, curve: LRCurve) -> None:
        super().__init__(f"range test interrupted after {len(curve)} iterations")
        self.curve = curve


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., Tensor] | None,
    batches: Iterable[Any],
    options: RangeTestOptions | None = None,
    *,
    step: StepOptions | None = None,
    smoothing: Smoothing | None = None,
    batch_loss: BatchLoss | None = None,
    probe: Any | None = None,
    validation: Validation | None = None,
    modules: Iterable[nn.Module] = (),
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> LRCurve:
    """Train for a few iterations while the learning rate grows, and return the losses.

    The model, the optimizer, the losses, the batches, and all random states are left exactly as
    they were found, also after an exception or Ctrl-C. See
    :func:`lrrt_stage.state.preserve.preserved` for how far that reaches. Tests in several threads
    take turns, since the random states belong to the process.

    Parameters
    ----------
    model, optimizer
        Any module, and any optimizer over its parameters whose ``step()`` needs no closure.
        Parameter groups keep the ratio of their learning rates; the curve's ``lr`` is that of
        the group with the largest learning rate.
    loss_fn
        ``loss_fn(output, target)``, a scalar; None for a model whose output has ``.loss``.
        See :func:`lrrt_stage.measure.step.batch_loss_of` for the supported batches.
    batches
        A ``DataLoader``, or anything else that can be iterated repeatedly.
    options, step
        The ramp and the stop rule; accumulation, clipping, precision, and layout. Any field of
        either can be passed by name instead: ``range_test(…, lr_end=10, precision="bf16")``.
    smoothing
        Its ``beta`` is the smoothing factor of the bias-corrected average that the stop rule reads.
    batch_loss
        A function from a batch on the device to its scalar loss, for models and batches that
        ``loss_fn`` cannot describe. It is used in place of ``loss_fn``.
    probe
        A batch that is not trained on, such as 64 validation examples. Its loss is evaluated at a
        third of the iterations (see :func:`lrrt_stage.measure.evaluations.probe_iterations`, and
        the option ``probe_every``), and the rule ``robust`` reads it. An evaluation costs a forward
        pass, and the loss twice. It does not change the training losses.
    validation
        What to evaluate at every iteration, at the weights of the training loss. It does not
        change the training losses.
    modules
        Further modules that take part, such as a teacher or a discriminator that the loss function
        calls. Like a loss that is a module, they keep their modes during the steps, are in
        evaluation mode for the probe and the validation, and are restored. A network that only a
        loss function knows is restored, too; but it is not moved to the device, and keeps its mode.
    device
        ``auto``, the name of a device, or None for the device of the model. The model, a loss that
        is a module, and ``modules`` are moved there for the test.
    progress
        Called after every iteration with the number of iterations done and their total.

    Returns
    -------
    LRCurve
        ``loss[i]`` is the loss of batch i at the weights before step i, which then uses ``lr[i]``;
        ``val_loss[i]`` is the validation loss at the same weights; what was not evaluated there
        is NaN. Under ``torch.distributed``
        losses are averaged over the ranks, so that all ranks stop at the same iteration.

    Raises
    ------
    LRRTError
        For options, batches, an optimizer, or a loss that cannot be used; for a model without
        trainable parameters or with lazy ones; for a first loss that is not finite.
    RangeTestInterrupted
        On Ctrl-C. It is a KeyboardInterrupt, and has the curve so far.
    Exception
        What the model, the loss, or the batches raise, also for want of memory. After the first
        iteration it has the curve so far as the attribute ``curve``; see :func:`curve_of`.

    References
    ----------
    L. N. Smith, *Cyclical Learning Rates for Training Neural Networks*, arXiv 1506.01186, §3.3.
    """
    for name, value, kind in (
        ("options", options, RangeTestOptions),
        ("step", step, StepOptions),
        ("smoothing", smoothing, Smoothing),
        ("validation", validation, Validation),
    ):
        fits = value is None or isinstance(value, kind)
        require_kind(fits, name, value, f"pass {kind.__name__}(…)")
    options, step = with_changes(options or RangeTestOptions(), step or StepOptions(), changes)
    several = modules is None or isinstance(modules, (nn.Module, Iterable))
    require_kind(several, "modules", modules, "give a list of torch modules")
    modules = [modules] if isinstance(modules, nn.Module) else list(modules or ())
    fits = progress is None or callable(progress)
    require_kind(fits, "progress", progress, "give a function of (done, total)")
    eval_loss = None if validation is None else validation.batch_loss
    losses = [loss for loss in (loss_fn, batch_loss, eval_loss) if loss is not None]
    others = [*losses, *modules]
    require_trainable(model, optimizer)
    _check_modules(model, optimizer, losses, modules)
    ratios = lr_ratios(optimizer)
    require_batches("batches", batches)
    batch_loss = batch_loss or batch_loss_of(model, loss_fn)
    device = next(model.parameters()).device if device is None else resolve_device(device)
    lr = options.learning_rates(batches, step.accumulate)
    recorder = LossRecorder(lr, options.stop_multiple, (smoothing or Smoothing()).beta)
    everything_restored = preserved(model, optimizer, (batches, probe, validation), device, others)
    with deterministic(), everything_restored, torch.enable_grad():
        for other in others:
            if isinstance(other, nn.Module):
                other.to(device)
        model.to(device).to(memory_format=layout_of(step))
        set_training(model)
        take_step = TrainingStep(model, optimizer, batch_loss, step, device)
        loss_of = partial(take_step.loss_of, batch_loss=eval_loss)
        stream = endless(batches)
        evaluations: list[tuple[Container[int], Callable[[int], dict[str, Tensor]]]] = []
        evaluated: dict[str, Tensor] = {}

        def evaluate(iteration: int) -> None:
            due = [losses_at for at, losses_at in evaluations if iteration in at]
            # Seeded alike at every iteration, so that training draws what it would without.
            with seeded(0) if due else nullcontext():
                for losses_at in due:
                    evaluated.update(losses_at(iteration))

        stop: Stop | None = None
        try:
            if probe is not None:
                with torch.no_grad():
                    probe = take_step.on_device(probe)
                first = [next(stream)]
                at = probe_iterations(options, len(lr), probe, first[0], step.accumulate)
                stream = _continued(first, stream)
                evaluations.append((at, Probe(model, probe, loss_of, others)))
            if validation is not None:
                with torch.no_grad():
                    sample = [take_step.on_device(batch) for batch in validation.sample]
                losses_of = validation_losses(model, validation, sample, loss_of, others, len(lr))
                evaluations.append((range(len(lr)), losses_of))
            for iteration, value in enumerate(lr.tolist()):
                for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(value * ratio)
                    else:
                        group["lr"] = value * ratio
                evaluated.clear()
                loss = take_step(stream, partial(evaluate, iteration))
                recorder.add(loss, **evaluated)
                if progress is not None:
                    progress(iteration + 1, len(lr))
                if recorder.should_stop():
                    break
        except KeyboardInterrupt:
            stop = "interrupted"
        except Exception as error:
            # A device that has failed may not give the losses.
            with suppress(Exception):
                error.curve = recorder.curve("failed")  # type: ignore[attr-defined]
            raise
        curve = recorder.curve(stop)
    if per_epoch := epoch_length(batches):
        curve = replace(curve, epochs=len(curve) * step.accumulate / per_epoch)
    if stop is not None:
        raise RangeTestInterrupted(curve)
    return curve


def _continued(first: list[Any], stream: Iterator[Any]) -> Iterator[Any]:
    """Yield ``first`` and then the rest, and hold no batch that was used."""
    while first:
        yield first.pop(0)
    yield from stream


def curve_of(error: BaseException | None) -> LRCurve | None:
    """Return the curve that was measured when an error, or its cause, ended a range test."""
    while error is not None:
        curve = getattr(error, "curve", None)
        if isinstance(curve, LRCurve) and len(curve):
            return curve
        error = error.__cause__
    return None


def with_changes(
    options: RangeTestOptions, step: StepOptions, changes: dict[str, Any]
) -> tuple[RangeTestOptions, StepOptions]:
    """Return both with the fields in ``changes`` replaced, in whichever has a field."""
    of_options = {field.name for field in fields(options)}
    of_step = {field.name for field in fields(step)}
    for name in changes:
        if name not in of_options | of_step:
            known = of_options | of_step | {*inspect.signature(range_test).parameters} - {"changes"}
            raise unknown_name("range_test option", name, known)
    return (
        replace(options, **{k: v for k, v in changes.items() if k in of_options}),
        replace(step, **{k: v for k, v in changes.items() if k in of_step}),
    )


def require_trainable(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise LRRTError unless ``model`` has trainable parameters, and ``optimizer`` holds some."""
    require_kind(isinstance(model, nn.Module), "the model", model, "pass an instance of nn.Module")
    require_optimizer(optimizer)
    require(
        any(parameter.requires_grad for parameter in model.parameters()),
        "the model has no trainable parameter: set requires_grad on some, or first run a batch "
        "through a model that creates its parameters in its first forward pass",
    )
    require_no_lazy(model, "the model")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    require(
        any(id(parameter) in held for parameter in model.parameters()),
        "the optimizer holds none of this model's parameters: recreate it with model.parameters()",
    )


def _check_modules(
    model: nn.Module,
    optimizer: Optimizer,
    losses: Sequence[Callable[..., Any]],
    modules: Sequence[nn.Module],
) -> None:
    """Check the further ``modules``, and warn of networks that take part and are not among them."""
    for module in modules:
        fits = isinstance(module, nn.Module)
        require_kind(fits, "one of modules", module, "give the torch modules that the loss calls")
    parts = {id(part): part for part in parts_of([model, *losses, *modules])}
    known = known_to_functions(losses, parts)
    networks = [each for each in known if isinstance(each, nn.Module)]
    inner = {id(each) for network in networks for each in network.modules() if each is not network}
    found = [
        f"the loss calls a {type(network).__name__}"
        for network in networks
        if id(network) not in inner
        and getattr(network, "training", False)
        # A wrapper, such as DDP, has the tensors of the model.
        and any(id(each) not in parts for each in network.state_dict(keep_vars=True).values())
    ]
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    if count := sum(id(parameter) not in parts for parameter in optimized):
        found.append(f"the optimizer holds parameters ({count})")
    for what in dict.fromkeys(found):
        warnings.warn(
            f"{what} outside the model: pass the module as modules=[…], so that it is on the "
            "device, and in evaluation mode for the probe and the validation",
            stacklevel=3,
        )
