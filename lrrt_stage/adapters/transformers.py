"""The range test for a ``Trainer`` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lrrt_stage.adapters.arguments import (
    AdaptedLoader,
    RangeTestArguments,
    check_kind,
    range_test_arguments,
    warn_not_applied,
)
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_transformers"]

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
NOT_APPLIED = (
    "neftune_noise_alpha",
    "gradient_checkpointing",
    "torch_compile",
    "use_liger_kernel",
)
"""Arguments for which ``Trainer.train`` changes the model."""


def from_transformers(trainer: Any) -> RangeTestArguments:
    """Return the arguments of a range test for a ``transformers.Trainer``.

    The Trainer makes the optimizer, the batches and the loss from its arguments, with its
    collator, sampler, weight-decay groups, label smoothing and ``compute_loss_func``, and with the
    methods that a subclass overrides. ``max_grad_norm``, ``gradient_accumulation_steps``, ``bf16``
    and ``fp16`` become the ``step`` of the range test. As in the Trainer, the loss of accumulated
    batches is the mean over all their labels, if the model or the function supports that.

    Callbacks are not run. A warning names what else has no effect: ``neftune_noise_alpha``,
    checkpointing of activations, ``torch_compile``, ``use_liger_kernel``, fp8, and a
    ``training_step`` that a subclass overrides.

    Parameters
    ----------
    trainer
        A Trainer on one device, which is left as found. Its optimizer is used if it has one;
        otherwise, one is made for the test and dropped afterwards.

    Returns
    -------
    RangeTestArguments
        The ``probe`` is the first evaluation batch, of ``per_device_eval_batch_size`` examples.

    Raises
    ------
    LRRTError
        If this is not a Trainer, has no training data, or uses DeepSpeed or FSDP.
    """
    check_kind(trainer, "Trainer", "transformers")
    require(
        trainer.train_dataset is not None,
        "the Trainer has no train_dataset: make it with one",
    )
    require(
        not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled),
        "the Trainer shards its model with DeepSpeed or FSDP: make one without for the range test",
    )
    args = trainer.args
    not_applied = [name for name in NOT_APPLIED if getattr(args, name, None)]
    if args.mixed_precision not in PRECISIONS:
        not_applied.append(args.mixed_precision)
    if type(trainer).training_step.__module__ != "transformers.trainer":
        not_applied.append(f"{type(trainer).__name__}.training_step")
    if args.world_size > 1 or args.n_gpu > 1:
        not_applied.append("several devices")
    warn_not_applied(not_applied)
    step = StepOptions(
        accumulate=args.gradient_accumulation_steps,
        clip_norm=args.max_grad_norm or None,
        precision=PRECISIONS.get(args.mixed_precision, "fp32"),
    )

    def draw(batches: Iterator[Any], count: int = args.gradient_accumulation_steps) -> Any:
        return trainer.get_batch_samples(batches, count, args.device)

    with preserved_randomness():
        optimizer = trainer.optimizer
        if optimizer is None:
            optimizer = trainer.create_optimizer()
            trainer.optimizer = None
        batches = _StepLoader(trainer.get_train_dataloader(), draw)
        eval_data, val = trainer.eval_dataset, None
        if eval_data is not None:
            # Of several data sets, by name, the first.
            name = next(iter(eval_data)) if isinstance(eval_data, dict) else None
            val = _AcceleratedLoader(trainer.get_eval_dataloader(name))

    def batch_loss(batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            count, items = batches.count, batches.items
        else:  # of the probe
            count, items = 1, draw(iter([batch]), 1)[1]
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(
                trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=items
            )
        # The rule of `Trainer.training_step`: a loss that is divided by the labels of all batches
        # of a step is a share of their mean. The range test averages over the batches.
        is_share = getattr(trainer, "loss_is_scaled_for_ga", None)
        if is_share is None:
            is_share = trainer.compute_loss_func is not None or (
                trainer.model_accepts_loss_kwargs and items is not None
            )
        return loss * count if is_share else loss

    # After a training, Accelerate has wrapped the optimizer.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return range_test_arguments(trainer.model, optimizer, batches, batch_loss, val, step)


class _AcceleratedLoader(AdaptedLoader):
    """A loader of Accelerate, which registers itself as the active loader while it is iterated."""

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if hasattr(self.loader, "end"):
                self.loader.end()
            yield batch


class _StepLoader(_AcceleratedLoader):
    """Draws the batches of a step together, to know how many batches and labels it has."""

    count, items = 1, None

    def __init__(self, loader: Iterable[Any], draw: Callable[[Iterator[Any]], Any]) -> None:
        super().__init__(loader)
        self.draw = draw

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        while (drawn := self.draw(batches))[0]:
            step, self.items = drawn
            self.count = len(step)
            yield from step
