"""The range test for a LightningModule."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lrrt_stage.adapters.arguments import (
    AdaptedLoader,
    RangeTestArguments,
    check_kind,
    range_test_arguments,
)
from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_lightning"]

PACKAGES = ("lightning.pytorch.", "pytorch_lightning.")
"""The two names under which Lightning is published."""
LOGGING_METHODS = ("log", "log_dict", "print")


def from_lightning(
    module: Any,
    datamodule: Any | None = None,
    *,
    train_dataloaders: Any | None = None,
    val_dataloaders: Any | None = None,
    optimizer: Optimizer | None = None,
) -> RangeTestArguments:
    """Return the arguments of a range test for a LightningModule and its data.

    The hooks that prepare the data, the module and the optimizer are called as ``Trainer.fit``
    calls them: ``prepare_data``, ``setup("fit")``, ``configure_model``, ``configure_optimizers``,
    and those that transfer a batch. The loss is that of ``training_step``, for the probe too, in
    evaluation mode, since a ``validation_step`` need not return its loss. During these calls a
    ``Trainer`` that does not run is attached, and ``self.log``, ``self.log_dict`` and
    ``self.print`` do nothing.

    Schedulers, callbacks, and the other hooks of a Trainer are not run. Precision, clipping and
    accumulation are options of ``range_test``.

    Parameters
    ----------
    module
        A LightningModule with automatic optimization, of ``lightning`` or ``pytorch_lightning``.
    datamodule, train_dataloaders, val_dataloaders
        As in ``Trainer.fit``: loaders that are given have precedence over those of the
        datamodule, and these over those of the module. The first of several validation loaders is
        used.
    optimizer
        Used instead of the result of ``configure_optimizers``, which is then not called.

    Returns
    -------
    RangeTestArguments
        The ``probe`` is the first validation batch.

    Raises
    ------
    LRRTError
        For a module with manual optimization, several optimizers, or no training data; and at the
        first step, for a ``training_step`` that returns no loss.
    """
    attributes = ("training_step", "configure_optimizers", "automatic_optimization")
    check_kind(module, "LightningModule", attributes)
    name = type(module).__name__
    require(
        module.automatic_optimization,
        f"{name} has automatic_optimization=False, and steps its optimizers itself: pass "
        "range_test a part of it, with the optimizer and batch_loss of this part",
    )
    require(
        "dataloader_iter" not in inspect.signature(module.training_step).parameters,
        f"{name}.training_step takes dataloader_iter: pass range_test batches and batch_loss",
    )
    owners = [owner for owner in (datamodule, module) if owner is not None]
    step_loss = _StepLoss(module, datamodule, train_dataloaders, val_dataloaders)
    with preserved_randomness(), step_loss.attached():
        for owner in owners:
            owner.prepare_data()
        for owner in owners:
            owner.setup("fit")
        module.configure_model()
        if optimizer is None:
            optimizer = _single_optimizer(name, module.configure_optimizers())
        step_loss.trainer.strategy.optimizers = [optimizer]
        train, val = train_dataloaders, val_dataloaders
        if train is None and (hook := _user_hook(owners, "train_dataloader")):
            train = hook()
        if val is None and (hook := _user_hook(owners, "val_dataloader")):
            val = hook()
    if train is None or _loaders_in(train):
        raise LRRTError(
            f"{name} has {'no' if train is None else 'several'} training loaders: pass a "
            "datamodule with train_dataloader, or one loader as train_dataloaders"
        )
    val = next(iter(_loaders_in(val)), val)
    step_loss.batches = _CountedLoader(train)
    return range_test_arguments(module, optimizer, step_loss.batches, step_loss, val)


class _CountedLoader(AdaptedLoader):
    """A loader that knows the index of the batch that was drawn last in the present pass."""

    index = 0

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self.loader):
            self.index = index
            yield batch


class _StepLoss:
    """``training_step`` as a function from a batch to its loss."""

    batches: _CountedLoader

    def __init__(self, module: Any, datamodule: Any | None, train: Any, val: Any) -> None:
        self.module, self.datamodule = module, datamodule
        self.trainer = _silent_trainer(module)
        with self.attached():
            # For `estimated_stepping_batches`, which many schedulers are made with.
            self.trainer.strategy.connect(module)
            self.trainer._data_connector.attach_data(module, train, val, datamodule=datamodule)

    def __call__(self, batch: Any) -> Tensor:
        training = torch.is_grad_enabled()  # not for the probe
        index = self.batches.index if training else 0
        with self.attached(training):
            batch = self._transferred(batch)
            takes = inspect.signature(self.module.training_step).parameters.values()
            only_batch = len(takes) == 1 and all(p.kind != p.VAR_POSITIONAL for p in takes)
            output = self.module.training_step(*([batch] if only_batch else [batch, index]))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            got = "None" if output is None else type(output).__name__
            if isinstance(output, Mapping):
                got = f"the keys {sorted(output)}"
            raise LRRTError(
                f"{type(self.module).__name__}.training_step returned {got} for batch {index}: "
                "return the loss, or a dict with it as 'loss'"
            )
        return loss

    def _transferred(self, batch: Any) -> Any:
        """Return a batch after the user's hooks of its transfer to the device."""
        owners = [self.datamodule, self.module]
        device = next(self.module.parameters()).device
        if hook := _user_hook(owners, "on_before_batch_transfer"):
            batch = hook(batch, 0)
        if hook := _user_hook(owners, "transfer_batch_to_device"):
            batch = hook(batch, device, 0)
        if hook := _user_hook(owners, "on_after_batch_transfer"):
            batch = hook(batch, 0)
        return batch

    @contextmanager
    def attached(self, training: bool = True) -> Iterator[None]:
        """Attach the Trainer and disable logging inside the block."""
        setattr(self.trainer, "training" if training else "validating", True)
        replaced = {"_trainer": self.trainer, **dict.fromkeys(LOGGING_METHODS, _ignore)}
        with ExitStack() as stack:
            for module in self.module.modules():
                if hasattr(module, "_trainer"):
                    stack.enter_context(_replaced(module, replaced))
            if self.datamodule is not None:
                stack.enter_context(_replaced(self.datamodule, {"trainer": self.trainer}))
            yield


@contextmanager
def _replaced(owner: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """Replace attributes of one object inside the block."""
    own = vars(owner)
    found = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(found)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Replace the methods that log."""


def _silent_trainer(module: Any) -> Any:
    """Return a Trainer that writes nothing, of the package that the module comes from."""
    bases = [base.__module__ for base in type(module).__mro__]
    roots = [name for name in PACKAGES if any(base.startswith(name) for base in bases)]
    require(
        bool(roots),
        f"{type(module).__name__} is no LightningModule: derive it from lightning.LightningModule",
    )
    (root, *_) = roots
    package = importlib.import_module(root.rstrip("."))
    # The two packages share one logger, of the name of the one that was imported last.
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return package.Trainer(
                max_epochs=1,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        finally:
            logging.disable(level)


def _single_optimizer(name: str, configured: Any) -> Optimizer:
    """Return the optimizer from the result of ``configure_optimizers``, as without a scheduler."""
    found = configured
    if isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found = found[0]  # ([optimizer], [scheduler])
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    found = [entry["optimizer"] if isinstance(entry, dict) else entry for entry in found]
    found = [getattr(entry, "optimizer", entry) for entry in found]  # inside a LightningOptimizer
    if len(found) != 1 or not isinstance(found[0], Optimizer):
        kinds = ", ".join(type(entry).__name__ for entry in found) or "nothing"
        raise LRRTError(
            f"{name}.configure_optimizers returned {kinds}, but a range test needs one optimizer: "
            "pass one as from_lightning(..., optimizer=...)"
        )
    for group in found[0].param_groups:
        # A scheduler has set its own first learning rate, which in a warm-up is zero.
        group["lr"] = group.get("initial_lr", group["lr"])
    return found[0]


def _user_hook(owners: list[Any], name: str) -> Callable[..., Any] | None:
    """Return the first hook ``name`` of the owners that is not the default of Lightning."""
    for owner in owners:
        hook = getattr(owner, name, None)
        if hook is not None and not hook.__module__.startswith(PACKAGES):
            return hook
    return None


def _loaders_in(loaders: Any) -> list[Any]:
    """Return the DataLoaders in a list, tuple or dict; none if ``loaders`` is something else."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    several = isinstance(loaders, (list, tuple))
    return [loader for loader in loaders if isinstance(loader, DataLoader)] if several else []
