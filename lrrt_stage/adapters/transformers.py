"""The range test for a ``Trainer`` of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lrrt_stage.adapters.arguments import (
    AdaptedLoader,
    RangeTestArguments,
    check_kind,
    range_test_arguments,
)
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_transformers"]


def from_transformers(trainer: Any) -> RangeTestArguments:
    """Return the arguments of a range test for a ``transformers.Trainer``.

    The Trainer makes the optimizer, the batches and the loss from its arguments, with its
    collator, weight-decay groups, label smoothing and ``compute_loss_func``, and with the methods
    that a subclass overrides. The loss is the mean over a batch.

    Callbacks are not run. ``max_grad_norm``, ``bf16``, ``fp16`` and
    ``gradient_accumulation_steps`` are not read: use the options ``clip_norm``, ``precision`` and
    ``accumulate`` of ``range_test``. A Trainer clips at 1 by default.

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
    methods = ("compute_loss", "create_optimizer", "get_train_dataloader", "get_eval_dataloader")
    check_kind(trainer, "Trainer", methods)
    require(
        trainer.train_dataset is not None,
        "the Trainer has no train_dataset: make it with one",
    )
    require(
        not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled),
        "the Trainer shards its model with DeepSpeed or FSDP: make one without for the range test",
    )
    with preserved_randomness():
        optimizer = trainer.optimizer
        if optimizer is None:
            optimizer = trainer.create_optimizer()
            trainer.optimizer = None
        batches = _AcceleratedLoader(trainer.get_train_dataloader())
        eval_data, val = trainer.eval_dataset, None
        if eval_data is not None:
            # Of several data sets, by name, the first.
            name = next(iter(eval_data)) if isinstance(eval_data, dict) else None
            val = _AcceleratedLoader(trainer.get_eval_dataloader(name))

    def batch_loss(batch: Any) -> Tensor:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))

    # After a training, Accelerate has wrapped the optimizer.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return range_test_arguments(trainer.model, optimizer, batches, batch_loss, val)


class _AcceleratedLoader(AdaptedLoader):
    """A loader of Accelerate, which registers itself as the active loader while it is iterated."""

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if hasattr(self.loader, "end"):
                self.loader.end()
            yield batch
