"""The range test on a LightningModule."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lrrt_stage.adapters.arguments import Batches, RangeTestArguments, first_batch, require_methods
from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_lightning"]

PACKAGES = ("lightning", "pytorch_lightning")
LOGS = ("log", "log_dict", "print")
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def from_lightning(
    module: Any,
    datamodule: Any | None = None,
    *,
    train_dataloaders: Any | None = None,
    val_dataloaders: Any | None = None,
    optimizer: Optimizer | None = None,
) -> RangeTestArguments:
    """Return the arguments of a range test for a LightningModule and its data.

    The hooks that prepare data, module and optimizer are called as ``Trainer.fit`` calls them:
    ``prepare_data``, ``setup("fit")``, ``configure_model``, ``configure_optimizers``, and those
    that transfer a batch. The loss is that of ``training_step``; the probe's too, in evaluation
    mode, since a ``validation_step`` need not return its loss. Meanwhile a ``Trainer`` that does
    not run is attached, and ``self.log``, ``self.log_dict`` and ``self.print`` do nothing.

    Schedulers are left out. The callbacks and the other hooks of a Trainer, its precision, clipping
    and accumulation are not seen: the last three are options of ``range_test``.

    Parameters
    ----------
    module
        A LightningModule with automatic optimization, of ``lightning`` or ``pytorch_lightning``.
    datamodule, train_dataloaders, val_dataloaders
        As in ``Trainer.fit``: loaders that are given come before those of the datamodule, and
        these before the module's. Of several validation loaders, the first is used.
    optimizer
        Used in place of what ``configure_optimizers`` makes, which is then not called.

    Returns
    -------
    RangeTestArguments
        Its ``probe`` is the first validation batch.

    Raises
    ------
    LRRTError
        For a module with manual or several optimizers or without training data, and at the
        first step for a ``training_step`` that returns no loss.
    """
    names = ("training_step", "configure_optimizers", "automatic_optimization")
    require_methods(module, "LightningModule", names)
    name = type(module).__name__
    require(
        module.automatic_optimization,
        f"{name} has automatic_optimization=False, and steps its optimizers itself: pass "
        "range_test a part of it, that part's optimizer and batch_loss",
    )
    require(
        "dataloader_iter" not in inspect.signature(module.training_step).parameters,
        f"{name}.training_step takes dataloader_iter: pass range_test batches and batch_loss",
    )
    owners = [owner for owner in (datamodule, module) if owner is not None]
    step = _Step(module, datamodule, train_dataloaders, val_dataloaders)
    with preserved_randomness(), step.attached():
        for hook in ("prepare_data", "setup"):
            for owner in owners:
                getattr(owner, hook)(*(["fit"] if hook == "setup" else []))
        module.configure_model()
        if optimizer is None:
            optimizer = _only_optimizer(name, module.configure_optimizers())
        step.trainer.strategy.optimizers = [optimizer]
        train = _loader(train_dataloaders, owners, "train_dataloader")
        val = _loader(val_dataloaders, owners, "val_dataloader")
    if train is None or (isinstance(train, (list, tuple, dict)) and _loaders_in(train)):
        raise LRRTError(
            f"{name} has {'no' if train is None else 'several'} training loaders: pass a "
            "datamodule with train_dataloader, or one loader as train_dataloaders"
        )
    if isinstance(val, (list, tuple, dict)):
        val = next(iter(_loaders_in(val)), val)
    step.batches = _Counted(train)
    return {
        "model": module,
        "optimizer": optimizer,
        "loss_fn": None,
        "batches": step.batches,
        "batch_loss": step,
        "probe": None if val is None else first_batch(val),
    }


class _Counted(Batches):
    """Batches that know which one of its pass was drawn last."""

    index = 0

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self.loader):
            self.index = index
            yield batch


class _Step:
    """``training_step`` as a function from a batch to its loss."""

    batches: _Counted

    def __init__(self, module: Any, datamodule: Any | None, train: Any, val: Any) -> None:
        self.module, self.datamodule = module, datamodule
        self.trainer = _trainer(module)
        with self.attached():
            # For `estimated_stepping_batches`, which schedulers are often made with.
            self.trainer.strategy.connect(module)
            self.trainer._data_connector.attach_data(module, train, val, datamodule=datamodule)

    def __call__(self, batch: Any) -> Tensor:
        training = torch.is_grad_enabled()  # and not, for the probe
        with self.attached(training):
            device = next(self.module.parameters()).device
            for name in TRANSFER:
                hook = self._overridden(name)
                if hook is not None:
                    batch = hook(batch, *([device] if name == TRANSFER[1] else []), 0)
            takes = inspect.signature(self.module.training_step).parameters.values()
            alone = len(takes) == 1 and all(each.kind != each.VAR_POSITIONAL for each in takes)
            index = self.batches.index if training else 0
            output = self.module.training_step(*([batch] if alone else [batch, index]))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            kind = "None" if output is None else type(output).__name__
            got = f"the keys {sorted(output)}" if isinstance(output, Mapping) else kind
            raise LRRTError(
                f"{type(self.module).__name__}.training_step returned {got} for batch {index}: "
                "return the loss, or a dict with it as 'loss'"
            )
        return loss

    @contextmanager
    def attached(self, training: bool = True) -> Iterator[None]:
        """Attach the Trainer, and make logging do nothing; undo both at the end."""
        stage = "training" if training else "validating"
        setattr(self.trainer, stage, True)
        modules = [each for each in self.module.modules() if hasattr(each, "_trainer")]
        with ExitStack() as stack:
            for each in modules:
                stack.callback(_put_back, each, {name: vars(each).get(name) for name in LOGS})
                stack.callback(setattr, each, "_trainer", each._trainer)
                each._trainer = self.trainer
                vars(each).update(dict.fromkeys(LOGS, _nothing))
            if self.datamodule is not None:
                stack.callback(setattr, self.datamodule, "trainer", self.datamodule.trainer)
                self.datamodule.trainer = self.trainer
            yield

    def _overridden(self, name: str) -> Any | None:
        """Return the hook that the user has written: the datamodule's before the module's."""
        for owner in (self.datamodule, self.module):
            hook = getattr(owner, name, None)
            if hook is not None and hook.__module__.partition(".")[0] not in PACKAGES:
                return hook
        return None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for logging."""


def _put_back(module: Any, found: dict[str, Any]) -> None:
    for name, value in found.items():
        vars(module).pop(name, None)
        if value is not None:
            vars(module)[name] = value


def _trainer(module: Any) -> Any:
    """Return a Trainer that writes and says nothing, of the package that the module is from."""
    roots = [base.__module__.split(".") for base in type(module).__mro__]
    (root, *_) = (parts for parts in roots if parts[0] in PACKAGES)
    package = importlib.import_module(".".join(root[: 1 if root[0] == PACKAGES[1] else 2]))
    logger = logging.getLogger(".".join([*package.__name__.split("."), "utilities", "rank_zero"]))
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
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
            logger.setLevel(level)


def _only_optimizer(name: str, configured: Any) -> Optimizer:
    """Return the optimizer among what ``configure_optimizers`` may return, free of schedules."""
    found = configured
    if isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found = found[0]  # ([optimizer], [scheduler])
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    found = [each["optimizer"] if isinstance(each, dict) else each for each in found]
    found = [getattr(each, "optimizer", each) for each in found]  # a LightningOptimizer's own
    if len(found) != 1 or not isinstance(found[0], Optimizer):
        kinds = ", ".join(type(each).__name__ for each in found) or "nothing"
        raise LRRTError(
            f"{name}.configure_optimizers returned {kinds}, and a range test ramps one optimizer: "
            "pass it one as from_lightning(..., optimizer=...)"
        )
    for group in found[0].param_groups:
        # A scheduler that was made has set its own first rate, a warm-up even zero.
        group["lr"] = group.get("initial_lr", group["lr"])
    return found[0]


def _loader(given: Any | None, owners: Iterable[Any], name: str) -> Any | None:
    """Return the given loader, or the first that an owner has written a hook for."""
    if given is not None:
        return given
    for owner in owners:
        hook = getattr(owner, name)
        if hook.__module__.partition(".")[0] not in PACKAGES:
            return hook()
    return None


def _loaders_in(loaders: Any) -> list[Any]:
    values = loaders.values() if isinstance(loaders, dict) else loaders
    return [each for each in values if isinstance(each, DataLoader)]
