"""The range test for a LightningModule."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from lrrt_stage.adapters.arguments import (
    AdaptedLoader,
    RangeTestArguments,
    check_kind,
    range_test_arguments,
    warn_not_applied,
)
from lrrt_stage.errors import LRRTError, describe
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_lightning", "set_lightning_lr"]

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""The two names under which Lightning is published."""
LOGGING_METHODS = ("log", "log_dict", "print")
PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
STEP_HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "freeze_before_training",
)
"""Hooks of a module or a callback that can change a step."""
DDP = "DDPStrategy"
"""Strategy of a Trainer whose processes average their gradients."""
STEP_CALLBACKS = {
    "BackboneFinetuning",
    "BatchSizeFinder",
    "GradientAccumulationScheduler",
    "ModelPruning",
}
"""Callbacks of Lightning that change a step."""


def from_lightning(
    module: Any,
    datamodule: Any | None = None,
    *,
    trainer: Any | None = None,
    train_dataloaders: Any | None = None,
    val_dataloaders: Any | None = None,
    optimizer: Optimizer | int | None = None,
) -> RangeTestArguments:
    """Return the arguments of a range test for a LightningModule and its data.

    The hooks that prepare the data, the module and the optimizer are called as ``Trainer.fit``
    calls them: ``prepare_data``, ``setup("fit")``, ``configure_model``, ``configure_optimizers``,
    and those that transfer a batch. The loss is that of ``training_step``, for the probe too, in
    evaluation mode, since a ``validation_step`` need not return its loss. As in ``fit``, modules
    that are in evaluation mode train in it. During these calls a ``Trainer`` that does not run is
    attached. Its logger, ``self.log``, ``self.log_dict`` and ``self.print`` do nothing.

    In the ``fit`` of several processes with the strategy ``ddp``, the test takes steps as they do.
    Schedulers, callbacks, and the other hooks of a Trainer are not run. A warning names those that
    can change a step, and the arguments of ``trainer`` that have no effect.

    Parameters
    ----------
    module
        A LightningModule with automatic optimization, of ``lightning`` or ``pytorch_lightning``.
    datamodule, train_dataloaders, val_dataloaders
        As in ``Trainer.fit``: loaders that are given have precedence over those of the
        datamodule, and these over those of the module. A training loader may take the place of
        the datamodule. Several training loaders, in a list, a dict, or a ``CombinedLoader``, are
        combined as in ``fit``. The first of several validation loaders is used.
    trainer
        The Trainer to train with. It is not run; ``gradient_clip_val``,
        ``accumulate_grad_batches`` and ``precision`` become the ``step`` of the range test. A
        callback of the Trainer that runs gets its data and its optimizer.
    optimizer
        Used instead of the result of ``configure_optimizers``, which is then not called; or the
        index of the optimizer in this result.

    Returns
    -------
    RangeTestArguments
        The ``probe`` is the first validation batch. There is none with several training loaders,
        since ``training_step`` then takes batches of another form.

    Raises
    ------
    LRRTError
        For a module with manual optimization, several optimizers, or no training data.
    """
    package = importlib.import_module(check_kind(module, "LightningModule", *PACKAGES))
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
    if trainer is not None:
        check_kind(trainer, "Trainer", *PACKAGES)
    if datamodule is not None and not hasattr(datamodule, "prepare_data"):
        train_dataloaders, datamodule = datamodule, None
    not_applied = [f"{name}.{hook}" for hook in STEP_HOOKS if _user_hook([module], hook)]
    inside_fit = trainer is not None and trainer.state.status == "running"
    step, of_trainer = _step_options(trainer, inside_fit)
    warn_not_applied(not_applied + of_trainer)
    if trainer is not None and inside_fit:
        datamodule = trainer.datamodule
        trainer.fit_loop.setup_data()
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        train_dataloaders, val_dataloaders = trainer.train_dataloader, trainer.val_dataloaders
        # Lightning does not read those of a module without a validation_step.
        given = trainer.fit_loop.epoch_loop.val_loop._data_source
        if val_dataloaders is None and given.is_defined() and trainer.limit_val_batches != 0:
            val_dataloaders = given.dataloader()
        if not isinstance(optimizer, Optimizer):
            optimizer = _chosen(name, trainer.optimizers, optimizer)
    owners = [owner for owner in (datamodule, module) if owner is not None]
    step_loss = _StepLoss(
        module, datamodule, _silent_trainer(package, trainer), train_dataloaders, val_dataloaders
    )
    with preserved_randomness(), step_loss.attached():
        if not inside_fit:  # which has called these
            for owner in owners:
                owner.prepare_data()
            for owner in owners:
                owner.setup("fit")
            module.configure_model()
        if not isinstance(optimizer, Optimizer):
            # Lightning's own reading of the forms that the result may have.
            core = importlib.import_module(f"{package.__name__}.core.optimizer")
            result = module.configure_optimizers()
            try:
                configured, _, _ = core._configure_optimizers(result or [])
            except Exception as error:
                raise LRRTError(
                    f"{name}.configure_optimizers returned {describe(result)}: return an "
                    "optimizer, or one of the other forms that Lightning documents"
                ) from error
            optimizer = _chosen(name, configured, optimizer)
        step_loss.trainer.strategy.optimizers = [optimizer]
        train, val = train_dataloaders, val_dataloaders
        if train is None and (hook := _user_hook(owners, "train_dataloader")):
            train = hook()
        if val is None and not inside_fit and (hook := _user_hook(owners, "val_dataloader")):
            val = hook()
        step_loss.in_evaluation = [part for part in module.modules() if not part.training]
    require(
        train is not None,
        f"{name} has no training loaders: pass a datamodule with train_dataloader, or a loader as "
        "train_dataloaders",
    )
    kind = package.utilities.CombinedLoader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what torch deprecates
        train = train if isinstance(train, kind) else kind(train, "max_size_cycle")
        val = val if isinstance(val, kind) else kind([] if val is None else val)
    if inside_fit and trainer is not None and type(trainer.strategy).__name__ == DDP:
        # By the wrapper, whose forward pass has the gradients averaged.
        step_loss.training_step = trainer.strategy.training_step
    several = isinstance(train.iterables, (dict, list, tuple))
    first_val = None if several else next(iter(val.flattened), None)
    step_loss.batches = _CombinedLoader(train)
    return range_test_arguments(module, optimizer, step_loss.batches, step_loss, first_val, step)


def set_lightning_lr(module: Any, lr: float) -> None:
    """Set the learning rate of a LightningModule, also where loggers read it.

    Every ``lr`` and ``learning_rate`` is set: the attribute, the entry of ``hparams``, and that of
    ``hparams_initial``, which ``Trainer.fit`` logs. Without the last one, an experiment shows the
    learning rate that the module was made with.

    Parameters
    ----------
    module
        A LightningModule whose ``configure_optimizers`` reads one of them.
    lr
        The learning rate, such as ``suggest(curve).max``.

    Raises
    ------
    LRRTError
        If the module has neither.
    """
    stores = vars(module), module.hparams, getattr(module, "_hparams_initial", {})
    found = [(s, key) for s in stores for key in ("lr", "learning_rate") if key in s]
    require(
        bool(found),
        f"{type(module).__name__} has neither lr nor learning_rate, as an attribute or in hparams: "
        "give it one that configure_optimizers reads",
    )
    for store, key in found:
        store[key] = lr


class _CombinedLoader(AdaptedLoader):
    """A ``CombinedLoader`` of Lightning, as batches; it yields each with two indices."""

    index = 0
    """Index of the batch that was drawn last in the present pass."""

    def __iter__(self) -> Iterator[Any]:
        # A copy, since a CombinedLoader keeps its iterator.
        for batch, index, _ in copy.copy(self.loader):
            self.index = index
            yield batch

    def __len__(self) -> int:
        # A CombinedLoader has a length only while it is iterated.
        loader: Any = self.loader
        return (min if loader._mode == "min_size" else max)(map(len, loader.flattened))


class _StepLoss:
    """``training_step`` as a function from a batch to its loss."""

    batches: _CombinedLoader
    in_evaluation: list[Any]
    """Modules that are in evaluation mode in training, too."""

    def __init__(
        self, module: Any, datamodule: Any | None, trainer: Any, train: Any, val: Any
    ) -> None:
        self.module, self.datamodule, self.trainer = module, datamodule, trainer
        self.training_step: Callable[..., Any] = module.training_step
        with self.attached():
            # For `estimated_stepping_batches`, which many schedulers are made with.
            self.trainer.strategy.connect(module)
            self.trainer._data_connector.attach_data(module, train, val, datamodule=datamodule)

    def __call__(self, batch: Any) -> Any:
        training = torch.is_grad_enabled()  # not for the probe
        index = self.batches.index if training else 0
        for part in self.in_evaluation:
            part.training = False
        with self.attached(training):
            # These call the hooks of the module or of the datamodule.
            batch = self.module._on_before_batch_transfer(batch)
            device = next(self.module.parameters()).device
            batch = self.module._apply_batch_transfer_handler(batch, device)
            takes = inspect.signature(self.module.training_step).parameters.values()
            only_batch = len(takes) == 1 and all(p.kind != p.VAR_POSITIONAL for p in takes)
            output = self.training_step(*([batch] if only_batch else [batch, index]))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        require(
            isinstance(loss, torch.Tensor),
            f"{type(self.module).__name__}.training_step returned {describe(output)} for batch "
            f"{index}: return the loss, or a dict with it as 'loss'",
        )
        return loss

    @contextmanager
    def attached(self, training: bool = True) -> Iterator[None]:
        """Attach the Trainer and disable logging inside the block."""

        def ignore(*args: Any, **kwargs: Any) -> None:
            pass

        setattr(self.trainer, "training" if training else "validating", True)
        replaced = {"_trainer": self.trainer, **dict.fromkeys(LOGGING_METHODS, ignore)}
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


def _silent_trainer(package: Any, trainer: Any | None) -> Any:
    """Return a Trainer that writes nothing, and counts steps and epochs as ``trainer`` does."""
    counted = ("max_epochs", "max_steps", "accumulate_grad_batches")
    options = {"max_epochs": 1} if trainer is None else {n: getattr(trainer, n) for n in counted}
    # The two packages share one logger, of the name of the one that was imported last.
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return package.Trainer(
                devices=1,
                logger=package.loggers.logger.DummyLogger(),
                log_every_n_steps=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **options,
            )
        finally:
            logging.disable(level)


def _step_options(trainer: Any | None, inside_fit: bool) -> tuple[StepOptions, list[str]]:
    """Return how a Trainer takes a step, and the names of what has no effect in a range test."""
    if trainer is None:
        return StepOptions(), []
    precision, plugin = trainer.precision, type(trainer.precision_plugin)
    strategy = type(trainer.strategy).__name__
    by_value = trainer.gradient_clip_algorithm == "value"
    not_applied = {
        "gradient_clip_algorithm='value'": by_value and trainer.gradient_clip_val,
        f"precision={precision!r}": precision not in PRECISIONS,
        plugin.__name__: not plugin.__module__.startswith(PACKAGES),
        strategy: strategy not in ("SingleDeviceStrategy", DDP if inside_fit else ""),
        # 1.0 is all batches, and 1 is one batch.
        "limit_train_batches": repr(trainer.limit_train_batches) != "1.0",
        "overfit_batches": trainer.overfit_batches != 0,
    }
    # Inside a fit it is one of these that calls this.
    hooks_to_come = [hook for hook in STEP_HOOKS if not inside_fit or hook != "on_fit_start"]
    for callback in trainer.callbacks:
        if type(callback).__module__.startswith("mlflow."):  # that of autologging, which records
            continue
        name = type(callback).__name__
        hooks = [hook for hook in hooks_to_come if _user_hook([callback], hook)]
        not_applied[name] = bool(hooks) or name in STEP_CALLBACKS
    step = StepOptions(
        accumulate=trainer.accumulate_grad_batches,
        clip_norm=None if by_value else trainer.gradient_clip_val or None,
        precision=PRECISIONS.get(precision, "fp32"),
    )
    return step, [name for name, applies in not_applied.items() if applies]


def _chosen(name: str, configured: list[Optimizer], index: int | None) -> Optimizer:
    """Return the optimizer at an index; without one, the only optimizer."""
    chosen = configured if index is None else configured[index : index + 1]
    kinds = ", ".join(type(each).__name__ for each in configured) or "nothing"
    require(
        len(chosen) == 1,
        f"{name}.configure_optimizers returned {kinds}, but a range test needs one optimizer: "
        "pass one, or its index from 0, as from_lightning(..., optimizer=...)",
    )
    return chosen[0]


def _user_hook(owners: list[Any], name: str) -> Callable[..., Any] | None:
    """Return the first hook ``name`` of the owners that is not the default of Lightning."""
    for owner in owners:
        hook = getattr(owner, name, None)
        if hook is not None and not hook.__module__.startswith(PACKAGES):
            return hook
    return None
