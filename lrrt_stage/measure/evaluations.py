"""What is evaluated during the test and not trained on: the probe, and a validation loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from lrrt_stage.errors import LRRTError, describe, first_line
from lrrt_stage.measure.options import RangeTestOptions
from lrrt_stage.measure.step import (
    IN_EVALUATION,
    BatchLoss,
    none_left,
    require_batches,
    require_scalar,
)
from lrrt_stage.settings import require, require_kind
from lrrt_stage.state.device import summed_over_ranks
from lrrt_stage.state.preserve import Evaluation, preserved_sources

__all__ = [
    "Probe",
    "Validation",
    "evaluated_loss",
    "examples_in",
    "probe_iterations",
    "tensors_in",
    "validation_losses",
]

CPU = torch.device("cpu")
MAX_NESTING = 4
"""Depth at which the tensors of a batch are looked for."""
SHORT_RAMP, LONG_RAMP = 99, 1000
"""Iterations of a ramp. In a shorter one every evaluation counts; in a longer one, more of them
would tell no more."""
USUAL_RHYTHM = {2: 6, 3: 3, 5: 2}
RARE_RHYTHM = {2: 20, 3: 5, 4: 3, 5: 5}
"""Up to which fifth of the ramp -> iterations from one evaluation of the probe to the next: as a
rule, and where the probe is large."""
LARGE_PROBE = 2.5
"""Examples of a probe, as a multiple of those in a step: an evaluation then takes longer than a
step does."""


def probe_iterations(
    options: RangeTestOptions, iterations: int, probe: Any, batch: Any, accumulate: int = 1
) -> set[int]:
    """Return at which of the ``iterations`` of a ramp the probe is evaluated.

    An evaluation takes about half as long as a step with as many examples, so that to evaluate at
    every step makes a test half as long again, and one with small batches several times as long.
    Few are enough where the learning rate is too small to change anything, and more are needed
    where the loss rises. This moves the suggestion of ``robust`` by less than another probe of 64
    examples does (in the median 0.05 and 0.09 decades), wherever the rise falls between two of
    them. Ramps of other kinds are evaluated at every iteration, since most of their learning rates
    are large.

    Parameters
    ----------
    options
        Their ``probe_every`` replaces what is chosen here.
    iterations
        Of the ramp. One with few is evaluated more often.
    probe, batch
        Batches; how many examples they have decides, those of the batches on all ranks. Taken as
        alike where that is unknown.
    accumulate
        Batches in a step.
    """
    # The last one, since the loss may rise there for the first time.
    last = {iterations - 1}
    if options.probe_every is not None:
        return last.union(range(0, iterations, options.probe_every))
    if options.ramp != "exponential":
        return {*range(iterations)}
    if iterations < SHORT_RAMP:
        # At every iteration of up to 65, and then at every second one.
        return last.union(range(0, iterations, max(1, 3 * iterations // SHORT_RAMP)))
    part = nan  # of a step's examples to those of the probe
    with suppress(LRRTError):
        part = max(1, examples_in(batch) * accumulate) / examples_in(probe)
    # A step takes the batches of all ranks, which must evaluate at the same iterations.
    device = next((x.device for x in tensors_in(probe) if isinstance(x, Tensor)), CPU)
    part = float(summed_over_ranks(torch.tensor(part, device=device)))
    ratio = 1 / part if part > 0 else 1.0
    rhythm = USUAL_RHYTHM if ratio < LARGE_PROBE else RARE_RHYTHM
    length = min(iterations, LONG_RAMP)
    places, begin = set[int](), 0
    for fifth, every in rhythm.items():
        end = fifth * length // 5
        places.update(range(begin, end, every))
        begin = end
    return last.union(place * iterations // length for place in places)


class Probe:
    """Evaluates one batch that is not trained on, at the weights before every few steps.

    The training losses of a range test are of different examples at every iteration, and their
    noise misleads a rule. The probe has no such noise, and since it is not trained on, its loss
    rises as soon as the steps no longer help other examples.

    The evaluation is without dropout, but layers that normalise over the batch use the statistics
    of the batch. The running statistics lag some ten steps behind, which in a short ramp is a
    decade of learning rates. The model gets a copy of the batch, which it may change in place, and
    is restored, so that the training continues as without a probe.

    The loss is evaluated a second time with the mean output of the batch in place of each output:
    the baseline, which a network that is ruined, and answers alike to every example, still reaches.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        loss_of: BatchLoss,
        losses: Iterable[Any] = (),
    ) -> None:
        several = isinstance(batch, (Dataset, DataLoader))
        require_kind(not several, "the probe", batch, "pass one batch, as next(iter(loader))")
        self.model, self.batch, self.loss_of = model, batch, loss_of
        self.evaluating = Evaluation([model, *losses])
        # A frozen layer is in evaluation mode while the model trains, and stays as it is.
        self.norms = [
            layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training
        ]

    def __call__(self, iteration: int = 0) -> dict[str, Tensor]:
        """Return loss and baseline, scalars on the device, by their names in a curve.

        They do not depend on the ``iteration``. The baseline is NaN where the model is not called
        once, or does not return one tensor with a row for each example.
        """
        outputs: list[Any] = []
        with self.evaluating():
            for layer in self.norms:
                layer.training = True
            with _outputs_of(self.model, outputs):
                loss = evaluated_loss(
                    "the probe", lambda batch: self.loss_of(_copied(batch)), self.batch
                )
            # A copy: the model may hold this tensor, and then its value is restored. Infinite where
            # it is no number, which in a curve says that it was not evaluated.
            loss = torch.where(loss.isnan(), torch.inf, loss).reshape(())
            return {"probe_loss": loss, "probe_baseline": self._baseline(outputs, loss)}

    def _baseline(self, outputs: list[Any], loss: Tensor) -> Tensor:
        missing = torch.full_like(loss, torch.nan)
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            return missing
        (output,) = outputs
        rows = output.size(0) if output.dim() and output.is_floating_point() else 0
        if rows < 2 or rows != examples_in(self.batch):
            return missing
        own = vars(self.model).get("forward")
        try:
            alike = output.mean(0, keepdim=True).expand_as(output).contiguous()
            self.model.forward = lambda *_, **__: alike
            return self.loss_of(_copied(self.batch)).reshape(()).clone()
        except Exception:  # what a user's loss raises for outputs that it was not made for
            return missing
        finally:
            if own is None:
                vars(self.model).pop("forward", None)
            else:
                self.model.forward = own


@contextmanager
def _outputs_of(model: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Collect what the model returns in the block; nothing of a scripted one: it has no hooks."""
    if isinstance(model, torch.jit.ScriptModule):
        yield
        return

    def collect(module: nn.Module, inputs: Any, output: Any) -> None:
        # A copy, since a loss may change the output.
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    # Before the hooks of the user, which take part in both evaluations.
    hook = model.register_forward_hook(collect, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def evaluated_loss(name: str, batch_loss: BatchLoss, batch: Any) -> Tensor:
    """Return the loss of a batch in evaluation mode; an error names what is evaluated.

    Errors that an output of a different form causes, as some models return in this mode, become
    one line with the remedy; others of the user's code stay as they are.
    """
    try:
        return require_scalar(batch_loss(batch), IN_EVALUATION)
    except LRRTError as error:
        raise LRRTError(f"{name}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if "more than 1 value per channel" in str(error):
            raise LRRTError(
                f"{name} has one example in a batch, and the model normalises over it: give two or "
                "more"
            ) from error
        needs_gradients = isinstance(error, RuntimeError) and "require grad" in str(error)
        if isinstance(error, RuntimeError) and not needs_gradients:
            raise  # one of the user's
        remedy = "compute gradients under torch.enable_grad()" if needs_gradients else "correct it"
        raise LRRTError(
            f"{name}: the loss raised {type(error).__name__}: {first_line(error)}: {remedy}; if "
            f"the model returns something different in evaluation mode, {IN_EVALUATION}"
        ) from error


def _copied(batch: Any) -> Any:
    try:
        return copy.deepcopy(batch)
    except Exception as error:
        raise LRRTError(
            f"{describe(batch)} cannot be copied ({first_line(error)}): pass dense tensors "
            "without a graph"
        ) from error


@dataclass(frozen=True, eq=False, repr=False)
class Validation:
    """The data and the loss for the validation during a range test.

    Evaluating the whole validation set after every batch costs many times the test itself (33
    times in the article, Fig 8). A fixed sample of about one batch, without gradients and without
    waiting for the device, costs about a quarter of the test; a few evaluations of the whole set
    bound the error of the sample.

    Parameters
    ----------
    sample
        Batches that are evaluated at every iteration. They are kept on the device.
    full
        All validation batches; None to evaluate the sample only.
    full_evaluations
        Number of iterations at which ``full`` is evaluated, evenly spaced over the ramp.
    batch_loss
        Function from a batch, on the device, to its mean loss; None for the training loss. A
        penalty in the training loss makes the two losses incomparable, so leave it out here.
    """

    sample: Sequence[Any]
    full: Iterable[Any] | None = None
    full_evaluations: int = 5
    batch_loss: BatchLoss | None = None

    def __post_init__(self) -> None:
        require_batches("the validation sample", self.sample)
        if self.full is not None:
            require_batches("the full validation set", self.full)
        require(
            isinstance(self.full_evaluations, int) and self.full_evaluations >= 1,
            f"full_evaluations={self.full_evaluations!r} is no whole number from 1: use full=None "
            "for none",
        )


def validation_losses(
    model: nn.Module,
    validation: Validation,
    sample: Sequence[Any],
    batch_loss: BatchLoss,
    losses: Sequence[Any],
    iterations: int,
) -> Callable[[int], dict[str, Tensor]]:
    """Return a function from an iteration to scalars on the device, by their names in a curve.

    They are the mean loss over the ``sample``, which is on the device, and over the full set where
    it is evaluated. The model gets copies of the sample, which it may change in place.
    """

    evaluating = Evaluation([model, *losses])

    def weighted_loss(batch: Any) -> tuple[Tensor, int]:
        loss = evaluated_loss("the validation", batch_loss, batch)
        return loss.to(torch.float32, copy=True), examples_in(batch)

    def mean_loss(batches: Iterable[Any]) -> Tensor:
        with evaluating():
            weighted = [*map(weighted_loss, batches)]
        if not weighted:
            raise none_left("validation batches")
        total = sum(count for _, count in weighted)
        require(total > 0, "the validation batches are empty: give one example at least")
        return torch.stack([loss.reshape(()) * (count / total) for loss, count in weighted]).sum()

    full, full_at = validation.full, set[int]()
    if full is not None:
        count = min(validation.full_evaluations, iterations)
        # In the middle of equal parts: nothing is learned at the start, and the loss has exploded
        # at the end.
        full_at = {int((part + 0.5) * iterations / count) for part in range(count)}

    def losses_at(iteration: int) -> dict[str, Tensor]:
        found = {"val_loss": mean_loss(map(_copied, sample))}
        if full is not None and iteration in full_at:
            with preserved_sources(full):  # which may share a generator with the training batches
                found["full_val_loss"] = mean_loss(full)
        return found

    return losses_at


def examples_in(batch: Any) -> int:
    """Return the number of examples in a batch: the length of the first tensor in it.

    The least nested tensors come first. Where there is no tensor beside it, a list or tuple in the
    batch holds an example each.
    """
    level = [batch]
    for _ in range(MAX_NESTING):
        lengths = [value.size(0) for value in level if isinstance(value, Tensor) and value.dim()]
        lengths += [len(v) for v in level if isinstance(v, (list, tuple)) and v is not batch]
        if lengths:
            return lengths[0]
        level = [part for value in level for part in _parts(value)]
    raise LRRTError(
        f"a batch is {describe(batch)}, without a tensor whose length is the number of "
        "examples: give tuples or mappings of tensors"
    )


def tensors_in(batch: Any, depth: int = MAX_NESTING) -> Iterator[Any]:
    """Yield the tensors and arrays in a batch, in its order."""
    if isinstance(batch, (Tensor, np.ndarray)):
        yield batch
    elif depth > 0:
        for part in _parts(batch):
            yield from tensors_in(part, depth - 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        return value
    return (value if isinstance(value, Mapping) else getattr(value, "__dict__", {})).values()
