"""The range test for a ``Learner`` of fastai."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrrt_stage.adapters.arguments import (
    AdaptedLoader,
    RangeTestArguments,
    check_kind,
    range_test_arguments,
    warn_not_applied,
)
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_fastai"]

STEP_EVENTS = (
    "before_batch",
    "after_pred",
    "after_loss",
    "before_backward",
    "after_backward",
    "before_step",
    "after_step",
)
"""Events in which a callback can change a step."""
DEFAULT_CALLBACKS = {"TrainEvalCallback", "Recorder", "CastToTensor", "ProgressCallback"}
"""Only ``CastToTensor`` among them changes a step: :func:`_plain` does the same."""


def from_fastai(learn: Any) -> RangeTestArguments:
    """Return the arguments of a range test for a fastai ``Learner``.

    The optimizer is a copy of the one that ``fit`` would use: that of the learner, or one that is
    made in the same way, with ``opt_func`` and ``splitter``. As by ``fit``, its learning rates are
    set to ``learn.lr`` and its weight decay to ``learn.wd``: with ``learn.lr = slice(low, high)``,
    parameter groups get different learning rates, and keep their ratio in the test. The
    optimizers of fastai are not torch optimizers; such an optimizer is wrapped in one.

    Callbacks are not run, and a warning names those that would change a step, such as Mixup.
    Clipping, accumulation and precision are options of ``range_test``.

    Parameters
    ----------
    learn
        The learner, which is left as found. Training moves its model to ``learn.dls.device``; the
        test does so only with ``range_test(..., device=learn.dls.device)``.

    Returns
    -------
    RangeTestArguments
        The ``probe`` is the first batch of ``learn.dls.valid``, if there is one.

    Raises
    ------
    LRRTError
        If this is not a Learner, or its optimizer has weights of its own (``Lookahead``,
        ``ranger``).
    """
    check_kind(learn, "Learner", "fastai")
    warn_not_applied(
        type(callback).__name__
        for callback in learn.cbs
        if type(callback).__name__ not in DEFAULT_CALLBACKS
        and any(hasattr(callback, event) for event in STEP_EVENTS)
    )
    with preserved_randomness():
        optimizer = _torch_optimizer(learn)
    loaders = learn.dls.loaders
    val = _FastaiLoader(loaders[1]) if len(loaders) > 1 and loaders[1] is not None else None

    def batch_loss(batch: Any) -> Tensor:
        batch = _plain(tuple(batch))
        inputs = getattr(learn.dls, "n_inp", max(len(batch) - 1, 1))
        return _plain(learn.loss_func(learn.model(*batch[:inputs]), *batch[inputs:]))

    train = _FastaiLoader(learn.dls.train)
    return range_test_arguments(learn.model, optimizer, train, batch_loss, val)


class _FastaiLoader(AdaptedLoader):
    """A loader of fastai, which replaces its random generator in every pass."""

    def __iter__(self) -> Iterator[Any]:
        generator = getattr(self.loader, "rng", None)
        for batch in self.loader:
            # The order of this pass is drawn already. The range test restores the generator's
            # state.
            if generator is not None:
                self.loader.rng = generator  # type: ignore[attr-defined]
            yield batch


def _plain(values: Any) -> Any:
    """Return tensors, or a tuple of them, without the tensor types of fastai."""
    if isinstance(values, tuple):
        return tuple(_plain(value) for value in values)
    return values.as_subclass(Tensor) if isinstance(values, Tensor) else values


def _torch_optimizer(learn: Any) -> Optimizer:
    """Return a copy of the optimizer that ``fit`` would use, with the options that it would set."""
    found = learn.opt, learn.lr
    try:
        if learn.opt is None and hasattr(learn.opt_func, "param_groups"):
            learn.opt = learn.opt_func  # made by the user from a torch optimizer
        elif learn.opt is None:
            learn.create_opt()
        optimizer, lr = copy.copy(learn.opt), learn.lr
    finally:
        learn.opt, learn.lr = found
    name, inner = type(optimizer).__name__, getattr(optimizer, "opt", optimizer)
    require(
        hasattr(optimizer, "hypers"),
        f"the learner's optimizer is {name}, which is not fastai's: wrap one of torch's, "
        "opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)",
    )
    in_torch = isinstance(inner, Optimizer)  # in an OptimWrapper
    require(
        in_torch or inner is optimizer,
        f"{name} keeps weights of its own, which a range test cannot restore: use the optimizer "
        "inside it, such as opt_func=RAdam",
    )
    if in_torch:
        optimizer.opt = object.__new__(type(inner))
        vars(optimizer.opt).update(vars(inner))
        optimizer.opt.param_groups = [dict(group) for group in inner.param_groups]
    else:
        optimizer.hypers = [dict(hypers) for hypers in inner.hypers]
    if learn.wd is not None:
        optimizer.set_hypers(wd=learn.wd)
    optimizer.set_hypers(lr=lr)
    return optimizer.opt if in_torch else _WrappedOptimizer(optimizer)


class _WrappedOptimizer(Optimizer):
    """A torch optimizer that steps with a fastai optimizer, on its own groups and state."""

    def __init__(self, fastai_optimizer: Any) -> None:
        groups = zip(fastai_optimizer.param_lists, fastai_optimizer.hypers, strict=True)
        super().__init__([{"params": list(params), **hypers} for params, hypers in groups], {})
        self.fastai_optimizer = fastai_optimizer
        # The state also says which parameters weight decay leaves out.
        self.state.update({p: dict(state) for p, state in fastai_optimizer.state.items()})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step with the present groups and state."""
        self.fastai_optimizer.state = self.state
        self.fastai_optimizer.hypers = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.param_groups
        ]
        self.fastai_optimizer.step()
