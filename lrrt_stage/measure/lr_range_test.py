"""The learning-rate range test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrrt_stage.curve.lr_curve import LRCurve
from lrrt_stage.curve.smoothing import Smoothing
from lrrt_stage.errors import LRRTError, unknown_name
from lrrt_stage.measure.measurement import Measurement, RangeTestInterrupted
from lrrt_stage.measure.ramps import RangeTestOptions
from lrrt_stage.measure.step import BatchLoss, StepOptions, batch_loss_of
from lrrt_stage.measure.validation import Validation
from lrrt_stage.settings import require
from lrrt_stage.state.device import resolve_device
from lrrt_stage.state.weights import check_sizes

__all__ = ["RangeTestInterrupted", "range_test"]


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
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> LRCurve:
    """Train for a few iterations while the learning rate grows, and return the losses.

    The model, the optimizer, a loss that is a module, the batches and all random states are left
    exactly as they were found, also after an exception or Ctrl-C; see
    :func:`lrrt_stage.state.preserve.preserved` for how far that reaches.

    Parameters
    ----------
    model, optimizer
        Any module, and any optimizer over its parameters whose ``step()`` takes no closure.
        Parameter groups keep the ratio of their learning rates; the curve's ``lr`` is that of
        the group with the largest.
    loss_fn
        ``loss_fn(output, target)``, a scalar; None for a model whose output carries ``.loss``.
        See :func:`lrrt_stage.measure.step.batch_loss_of` for the batches that are understood.
    batches
        A ``DataLoader`` or anything that can be iterated again and again.
    options, step
        Ramp and stop rule; accumulation, clipping, precision, layout. Any field of either can
        be given by name instead: ``range_test(…, lr_end=10, precision="bf16")``.
    smoothing
        Its ``beta`` is that of the bias-corrected average which the stop rule looks at (the
        biased one starts near 0, so a multiple of its best means nothing).
    batch_loss
        For everything else: a function from a batch (on the device) to its scalar loss. It is
        used in place of ``loss_fn``.
    probe
        A batch that is not trained on, such as 64 validation examples; its loss is taken at every
        iteration, see :class:`lrrt_stage.measure.probe.Probe`, and is what ``robust`` reads. It
        costs a forward pass of its size; it does not change the training losses. The ramp that
        this rule reads follows, from the same weights and over the same batches, unless this is
        that one or has fewer iterations; see :attr:`lrrt_stage.RangeTestOptions.reference`.
    validation
        What is evaluated at every iteration, at the same weights as the training loss. It does
        not change the training losses.
    device
        ``auto``, a name, or None for where the model is. The model, and a loss that is a module,
        are moved there for the test.
    progress
        Called after every iteration with the iterations done and their number.

    Returns
    -------
    LRCurve
        ``loss[i]``: loss of batch i at the weights before step i, which then uses ``lr[i]``;
        ``val_loss[i]``: the validation loss at those weights. ``reference``: the same of the
        reference ramp, where that was gone through apart.
        Under ``torch.distributed`` the losses are averaged over the ranks, so that all ranks
        stop at the same iteration.

    Raises
    ------
    LRRTError
        For options, batches, an optimizer or a loss that cannot be used, a model without
        trainable parameters or with lazy ones, or a first loss that is not finite.
    RangeTestInterrupted
        On Ctrl-C; it is a KeyboardInterrupt and carries the curve so far.

    Warns
    -----
    UserWarning
        If the reference ramp failed; the curve is then without it.

    References
    ----------
    L. N. Smith, *Cyclical Learning Rates for Training Neural Networks*, arXiv 1506.01186, §3.3.
    """
    options, step = _with_changes(options or RangeTestOptions(), step or StepOptions(), changes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LRRTError(
            "the model has no trainable parameter: set requires_grad on some, or first run a batch "
            "through a model that makes its parameters then"
        )
    check_sizes(model, "the model")
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    require(
        any(id(parameter) in moved for parameter in model.parameters()),
        "the optimizer has no parameter of the model, it was made for another: make it again, with "
        "model.parameters()",
    )
    here = next(model.parameters()).device
    outside = None if validation is None else validation.batch_loss
    losses = (loss_fn, batch_loss, outside)
    test = Measurement(
        model=model,
        optimizer=optimizer,
        batches=batches,
        batch_loss=batch_loss or batch_loss_of(model, loss_fn),
        step=step,
        device=here if device is None else resolve_device(device),
        stop_multiple=options.stop_multiple,
        beta=(smoothing or Smoothing()).beta,
        probe=probe,
        validation=validation,
        outside=outside,
        losses=tuple(loss for loss in losses if isinstance(loss, nn.Module)),
    )
    lr = options.learning_rates(batches, step.accumulate)
    reference = options.reference.learning_rates(batches, step.accumulate)
    # Fewer iterations were asked for to save time.
    apart = probe is not None and len(lr) >= len(reference) and not np.array_equal(lr, reference)
    total = len(lr) + len(reference) * apart
    curve = test.along(lr, progress and (lambda done: progress(done, total)))
    if not apart:
        return curve
    try:
        read_apart = replace(test, validation=None).along(
            reference, progress and (lambda done: progress(len(lr) + done, total))
        )
    except KeyboardInterrupt:
        raise RangeTestInterrupted(curve) from None
    except Exception as error:
        # Whatever it was, what was measured is not lost for it.
        reads = "the rule 'robust' reads the range test's own ramp, and moves with it"
        warnings.warn(f"{reads}: {error}", stacklevel=2)
        return curve
    # A file of it does not hold the passes over the data.
    return replace(curve, reference=replace(read_apart, epochs=None))


def _with_changes(
    options: RangeTestOptions, step: StepOptions, changes: dict[str, Any]
) -> tuple[RangeTestOptions, StepOptions]:
    """Return both with the fields in ``changes`` replaced, each in the one that has it."""
    of_options = {field.name for field in fields(options)}
    of_step = {field.name for field in fields(step)}
    for name in changes:
        if name not in of_options | of_step:
            raise unknown_name("range_test option", name, of_options | of_step)
    return (
        replace(options, **{k: v for k, v in changes.items() if k in of_options}),
        replace(step, **{k: v for k, v in changes.items() if k in of_step}),
    )
