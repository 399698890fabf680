"""The range test on a ``Learner`` of fastai."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrrt_stage.adapters.arguments import Batches, RangeTestArguments, first_batch, require_methods
from lrrt_stage.errors import LRRTError
from lrrt_stage.settings import require
from lrrt_stage.state.randomness import preserved_randomness

__all__ = ["from_fastai"]

EVENTS = (
    "before_batch",
    "after_pred",
    "after_loss",
    "before_backward",
    "after_backward",
    "before_step",
    "after_step",
)
"""What a callback can change a step by."""
OWN = {"TrainEvalCallback", "Recorder", "CastToTensor", "ProgressCallback"}
"""fastai's default callbacks, of which casting alone touches a step: that is done here too."""


def from_fastai(learn: Any) -> RangeTestArguments:
    """Return the arguments of a range test for a fastai ``Learner``.

    The optimizer is the one that ``fit`` would use: the learner's, or one that is made as ``fit``
    makes it, with ``opt_func``, ``splitter``, ``wd`` and ``lr``, and dropped afterwards. Parameter
    groups keep the ratio of their learning rates; ``learn.lr = slice(low, high)`` sets it.

    fastai's optimizers are not those of torch. Such a one is given a torch ``Optimizer`` to the
    outside, with its groups and a state of its own, and takes the steps with them.

    Callbacks are not run. Mixup, for one, is left out, and a warning names the callbacks that
    would change a step; clipping, accumulation and precision are options of ``range_test``.

    Parameters
    ----------
    learn
        The learner, left as found. Training moves its model to ``learn.dls.device``; the test
        leaves it where it is, but for ``range_test(..., device=learn.dls.device)``.

    Returns
    -------
    RangeTestArguments
        Its ``probe`` is the first batch of ``learn.dls.valid``, if there is one.

    Raises
    ------
    LRRTError
        For what is no Learner, or an optimizer with weights of its own (``Lookahead``,
        ``ranger``).
    """
    require_methods(learn, "Learner", ("create_opt", "fit"))
    ignored = [
        type(callback).__name__
        for callback in learn.cbs
        if type(callback).__name__ not in OWN and any(hasattr(callback, name) for name in EVENTS)
    ]
    if ignored:
        warnings.warn(
            f"callbacks are not run in the range test: {', '.join(ignored)}; clip_norm, accumulate "
            "and precision are options of range_test",
            stacklevel=2,
        )
    with preserved_randomness():
        optimizer = _torch_optimizer(_optimizer(learn))
    loaders = learn.dls.loaders
    valid = _Batches(loaders[1]) if len(loaders) > 1 and loaders[1] is not None else None

    def batch_loss(batch: Any) -> Tensor:
        batch = _plain(tuple(batch))
        inputs = getattr(learn.dls, "n_inp", max(len(batch) - 1, 1))
        output = learn.model(*batch[:inputs])
        loss = learn.loss_func(output, *batch[inputs:])
        return loss.as_subclass(Tensor) if isinstance(loss, Tensor) else loss

    return {
        "model": learn.model,
        "optimizer": optimizer,
        "loss_fn": None,
        "batches": _Batches(learn.dls.train),
        "batch_loss": batch_loss,
        "probe": None if valid is None else first_batch(valid),
    }


class _Batches(Batches):
    """A loader of fastai, which replaces its random generator at every pass."""

    def __iter__(self) -> Iterator[Any]:
        generator = getattr(self.loader, "rng", None)
        for batch in self.loader:
            # The pass has its order. The first generator's state is put back by the range test.
            if generator is not None:
                self.loader.rng = generator  # type: ignore[attr-defined]
            yield batch


def _plain(values: Any) -> Any:
    """Return tensors without fastai's types, as its ``CastToTensor`` hands them to the model."""
    if isinstance(values, tuple):
        return tuple(_plain(value) for value in values)
    return values.as_subclass(Tensor) if isinstance(values, Tensor) else values


def _optimizer(learn: Any) -> Any:
    """Return the optimizer of fastai's kind that ``fit`` would use; the learner keeps its own."""
    if learn.opt is not None:
        return learn.opt
    if hasattr(learn.opt_func, "param_groups"):  # made by the user, around an optimizer of torch
        return learn.opt_func
    lr = learn.lr
    try:
        learn.create_opt()
        made: Any = learn.opt
        if learn.wd is not None:
            made.set_hypers(wd=learn.wd)
        made.set_hypers(lr=learn.lr)
    finally:
        learn.opt, learn.lr = None, lr
    return made


def _torch_optimizer(optimizer: Any) -> Optimizer:
    inner = getattr(optimizer, "opt", optimizer)
    if isinstance(inner, Optimizer):  # in an OptimWrapper
        return inner
    require(
        inner is optimizer,
        f"{type(optimizer).__name__} keeps weights of its own, which a range test cannot put back: "
        "use the optimizer in it, such as opt_func=RAdam",
    )
    if not hasattr(optimizer, "hypers"):
        raise LRRTError(
            f"the learner's optimizer is {type(optimizer).__name__}, which is neither fastai's nor "
            "torch's: wrap one of torch's, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)"
        )
    return _Outside(optimizer)


class _Outside(Optimizer):
    """A fastai optimizer to the outside: groups and state are torch's, the step is fastai's."""

    def __init__(self, inside: Any) -> None:
        groups = zip(inside.param_lists, inside.hypers, strict=True)
        super().__init__([{"params": list(params), **hypers} for params, hypers in groups], {})
        self.inside = inside
        # The state that training goes on with; some of it says what a parameter is exempt from.
        self.state.update({p: dict(state) for p, state in inside.state.items()})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step with these groups and this state, and give the optimizer its own back."""
        own = self.inside.state, self.inside.hypers
        self.inside.state = self.state
        self.inside.hypers = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.param_groups
        ]
        try:
            self.inside.step()
        finally:
            self.inside.state, self.inside.hypers = own
