"""The range test on a ``Trainer`` of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lrrt_stage.adapters.arguments import Batches, RangeTestArguments, first_batch, require_methods
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_transformers"]


def from_transformers(trainer: Any) -> RangeTestArguments:
    """Return the arguments of a range test for a ``transformers.Trainer``.

    Optimizer, batches and loss are what the Trainer makes of its arguments, with its collator,
    weight-decay groups, label smoothing or ``compute_loss_func``; a subclass's methods count. The
    loss is the mean over a batch.

    Callbacks are not run, and ``max_grad_norm``, ``bf16``, ``fp16`` and
    ``gradient_accumulation_steps`` of its arguments are not read: give ``range_test`` its options
    ``clip_norm``, ``precision`` and ``accumulate``. A Trainer clips at 1 by default.

    Parameters
    ----------
    trainer
        A Trainer on one device. It is left as found: an optimizer that is made for the test is
        not kept, one that it has already is used.

    Returns
    -------
    RangeTestArguments
        Its ``probe`` is the first evaluation batch, of ``per_device_eval_batch_size`` examples.

    Raises
    ------
    LRRTError
        For what is no Trainer, one without training data, or under DeepSpeed or FSDP.
    """
    names = ("compute_loss", "create_optimizer", "get_train_dataloader", "get_eval_dataloader")
    require_methods(trainer, "Trainer", names)
    require(
        trainer.train_dataset is not None,
        "the Trainer has no train_dataset: make it with one",
    )
    require(
        not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled),
        "the Trainer shards its model with DeepSpeed or FSDP: make one without for the range test",
    )
    made = trainer.optimizer is None
    with preserved_randomness():
        optimizer = trainer.create_optimizer() if made else trainer.optimizer
        if made:
            trainer.optimizer = None
        batches = _Batches(trainer.get_train_dataloader())
        evaluated = trainer.eval_dataset
        probe = None
        if evaluated is not None:
            # Of several data sets, by name, the first.
            name = next(iter(evaluated)) if isinstance(evaluated, dict) else None
            probe = first_batch(_Batches(trainer.get_eval_dataloader(name)))

    def batch_loss(batch: Any) -> Tensor:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))

    return {
        "model": trainer.model,
        # After a training, what Accelerate has wrapped.
        "optimizer": getattr(optimizer, "optimizer", optimizer),
        "loss_fn": None,
        "batches": batches,
        "batch_loss": batch_loss,
        "probe": probe,
    }


class _Batches(Batches):
    """A loader of Accelerate, which registers itself as the one that training is in."""

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if hasattr(self.loader, "end"):
                self.loader.end()
            yield batch
