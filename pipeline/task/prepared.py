"""A task made ready to run: data loaded and checked, device chosen, and equal starts from it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import isclose
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lrrt_stage import LRCurve, Validation, initialize, range_test, resolve_device, seeded
from lrrt_stage.errors import LRRTError, describe, first_line, loader_error
from lrrt_stage.measure.evaluations import evaluated_loss, examples_in, tensors_in
from lrrt_stage.measure.ramps import epoch_length
from lrrt_stage.measure.step import TrainingStep, endless, layout_of, require_repeatable
from lrrt_stage.settings import require
from lrrt_stage.state import weights
from lrrt_stage.state.device import to_device
from lrrt_stage.state.preserve import Evaluation, preserved_sources
from pipeline.data.datasets import load_data
from pipeline.data.factories import call, cause_of, load_factory
from pipeline.data.splits import Data
from pipeline.data.trust import NAMES, NameFromRun, require_trusted
from pipeline.models.networks import check_output
from pipeline.ranks.group import current, on_all_ranks
from pipeline.ranks.share import Share, SharedBatches, count_examples, is_shared
from pipeline.task.builtin import builtin_setup
from pipeline.task.plan import RangeTestPlan, ValidationOptions
from pipeline.task.setup import Setup
from pipeline.task.tasks import Runtime, Task

__all__ = ["PreparedTask", "errors_of"]

FULL_EVALUATIONS = 2
"""Of the full validation set in a test with a sample: enough to see how far the sample is off."""
SAME_MEAN, MEAN_OF = 1e-4, 16
"""How far the loss of a batch may differ from the mean over so many parts. Before the training, the
examples have losses that are nearly the same; of more parts, a weighted mean differs by more."""
RANK_SEEDS = 1_000_003
"""How far the seeds of two ranks are apart: farther than people choose theirs."""
COMPARED_BATCHES = 4
"""Of two calls of a factory: what draws from outside the seed shows in the first few."""


class PreparedTask:
    """A task on a device; ``data`` is its built-in dataset, if it is loaded already.

    Raises
    ------
    LRRTError
        If the data, the setup or the device cannot be used, before any work; in particular, if two
        calls of a setup's factory do not give equal weights and equal first batches, or if no step
        can be taken. Of splits on disk, only the first batches are read here.
    """

    def __init__(
        self, task: Task, runtime: Runtime | None = None, data: Data | None = None
    ) -> None:
        runtime = runtime or Runtime()
        self.task, self.runtime, self._validated = task, runtime, False
        self.ranks, self._number = current(), next(_numbers)
        # All of them first, so that nothing is imported or read before one is refused.
        for kind in NAMES:
            require_trusted(kind, getattr(task, kind))
        if self.ranks is None or not self.ranks.is_first or self.ranks.is_calling:
            self._prepare(data)
            return
        if task.setup is None:
            self.ranks.options.require_divided(task.batch_size)
        with self.ranks.calling(_prepared_again, self.__reduce__()[1], {}):
            self._prepare(data)

    def _prepare(self, data: Data | None) -> None:
        task, runtime = self.task, self.runtime
        require(
            self.ranks is None or ":" not in runtime.device,
            f"device={runtime.device!r} is one device, and several processes need one each: give "
            "its kind, such as cuda",
        )
        require(
            self.ranks is None or self.ranks.options.strategy == "ddp" or task.precision != "fp16",
            "strategy=fsdp does not scale the loss that precision=fp16 needs: use bf16",
        )
        self.device = resolve_device(runtime.device)
        if self.ranks is not None:
            self.ranks.options.require_device(self.device.type)
        if task.setup is None:
            with errors_of(task):
                data = data or load_data(task.dataset, task.dataset_args, runtime.data_dir)
            require(
                data.num_classes != 1,
                f"dataset {task.dataset!r} has one class, of which nothing can be learnt: give "
                "examples of two or more",
            )
            # Moved once, for all starts.
            self.data: Data | None = data.to(self.device)
            self._make = partial(
                builtin_setup, task, self.data, self.device, task.data_seed, runtime.loader_workers
            )
        else:
            self.data = None
            # Now, since what a module draws when it is imported is not a setup's.
            factory = load_factory("setup", task.setup)
            self._make = partial(call, "setup", task.setup, factory, task.setup_args)
        with errors_of(task):
            self.data_digest, self.batch_size = self._check_setup()

    def __reduce__(self) -> Any:
        """Stand for the same task on another rank."""
        return _prepared_again, (self._number, self.task, self.runtime)

    def setup(self, share: Share | None = None) -> Setup:
        """Return a new setup, its model on the CPU with the weights that the task's seed gives.

        The batches of the built-in one are the part ``share`` of each.
        """
        shared = {} if share is None or self.task.setup is not None else {"share": share}
        with seeded(self.task.seed), errors_of(self.task):
            made = self._make(**shared)
        require(
            isinstance(made, Setup),
            f"setup {self.task.setup!r} returned {describe(made)}: return pipeline.Setup(model=…, "
            "optimizer=…, train_batches=…, val_batches=…, loss_fn=…)",
        )
        return made

    def initial_weights(self, pretrained: weights.State | None = None) -> dict[str, Tensor]:
        """Return parameters and buffers before the first step, on the CPU.

        They are drawn with the task's seed, or those of ``pretrained``, which must be given for an
        ``init`` of ``run:ID`` (only the caller knows where runs are).
        """
        model, init = self.setup().model, self.task.initial
        if init.startswith("file:"):
            require_trusted("init", init)
            pretrained = weights.load(init.removeprefix("file:"))
        if pretrained is not None:
            weights.load_into(model, pretrained)
        else:
            initialize(model, init, self.task.seed)
        with errors_of(self.task):
            return weights.state_of(model)

    def start(self, state: weights.State | None = None) -> Setup:
        """Return a setup whose model is on the device and has the weights ``state``; None: its own.

        Every call returns an equal start, so that experiments differ only in what follows. Where
        several ranks take part, each has its own start, and their training loss is one.
        """
        ranks = self.ranks
        setup = self.setup(None if ranks is None else ranks.share)
        with errors_of(self.task):
            if state is not None:
                weights.load_into(setup.model, state)
            setup.to(self.device, layout_of(self.task))
            if ranks is not None:
                found = weights.digest(weights.state_of(setup.model))
                ranks.require_equal("initial weights", found)
                setup.share_with(ranks)
        return setup

    def whole(self, setup: Setup) -> Setup:
        """Return a setup that rank 0 can use alone, with the weights of one that all ranks share.

        All of them have to call this.
        """
        if self.ranks is None or not self.ranks.options.changes_model:
            return setup
        state = weights.state_of(setup.model)
        if not self.ranks.is_first:
            return setup
        alone = self.setup()
        weights.load_into(alone.model, state)
        for loss, trained in zip(alone.loss_modules, setup.loss_modules, strict=True):
            loss.load_state_dict(trained.state_dict())
        alone.to(self.device, layout_of(self.task))
        return alone

    @property
    def seed_of_steps(self) -> int:
        """Seed of what the steps draw, such as dropout: each rank draws its own.

        With a setup of the user's all ranks draw the same, since its batches may be drawn as well.
        """
        rank = 0 if self.ranks is None or self.task.setup else self.ranks.share.rank
        return (self.task.data_seed + rank * RANK_SEEDS) % 2**63

    @on_all_ranks
    def range_test(
        self,
        state: weights.State,
        plan: RangeTestPlan | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LRCurve:
        """Run the range test from the weights ``state``."""
        start = self.start(state)
        plan = plan or RangeTestPlan()
        # Separate, so that the test draws the same numbers whatever is evaluated.
        with (
            seeded(self.task.data_seed),
            preserved_sources(start.val_batches),
            errors_of(self.task),
        ):
            size = plan.validation.probe_size(self.batch_size)
            probe = None
            if size > 0 and start.val_batches is not None:
                held_out = self._held_out(start, size, plan.validation.probe)
                probe = held_out if examples_in(held_out) > 1 else None  # batch norm needs two
            validation = self._validation(start, plan.validation)
        with seeded(self.seed_of_steps), errors_of(self.task):
            return range_test(
                start.model,
                start.optimizer,
                start.loss_fn,
                start.train_batches,
                plan.ramp,
                step=self.task,
                smoothing=plan.smoothing,
                batch_loss=start.training_loss,
                modules=start.loss_modules,
                probe=probe,
                validation=validation,
                progress=progress,
            )

    def evaluate(self, setup: Setup) -> tuple[float, dict[str, float]]:
        """Return loss and metrics over the validation batches, in evaluation mode.

        The model is restored: the training that follows is the same as without. Before that, all
        ranks get the buffers of rank 0.
        """
        ranks, evaluating = self.ranks, Evaluation([setup.model, *setup.losses])
        if ranks is None:
            with evaluating(), errors_of(self.task):
                return setup.evaluate(self.on_device)
        for module in (setup.model, *setup.loss_modules):
            ranks.agree_on_buffers(module)
        few = setup.val_batches is not None and epoch_length(setup.val_batches)
        # A forward pass of FSDP takes all ranks; and each of them has to have a batch.
        takes_all = ranks.options.strategy == "fsdp" or few < ranks.share.size
        with evaluating(), errors_of(self.task):
            evaluates_all = takes_all and not is_shared(setup.val_batches)
            found = setup.evaluate(self.on_device, None if evaluates_all else ranks)
        # To the bit: the ranks decide by it which weights are the best.
        return ranks.broadcast(found)

    def on_device(self, batch: Any) -> Any:
        """Return a batch on the device, in the layout of the task."""
        return to_device(batch, self.device, layout_of(self.task))

    @on_all_ranks
    def check_validation(self, start: Setup | None = None) -> None:
        """Evaluate a setup, and begin again, so that errors are raised before a training.

        This takes a fraction of an epoch, once per prepared task, and saves a training that would
        fail at the end of its first epoch. Without ``start``, a new setup is made for it.
        """
        if self._validated:
            return
        start = start or self.start()
        if start.val_batches is not None:
            with seeded(self.task.data_seed), preserved_sources(start.val_batches):
                self.evaluate(start)
                with errors_of(self.task):
                    next(endless(start.val_batches, "validation batches"))
        self._validated = True

    def _held_out(self, setup: Setup, size: int, asked: int | None) -> Any:
        """Return a batch of held-out examples, where there are validation batches."""
        if setup.probe is not None:
            held_out = setup.probe(size)
            try:
                examples_in(held_out)
            except LRRTError as error:
                returned = f"the probe function returned {describe(held_out)} for {size} examples"
                raise LRRTError(f"{returned}: {error}") from None
            return held_out
        assert setup.val_batches is not None
        require(
            asked is None,
            f"setup {self.task.setup!r} has no probe function, so that {asked} examples cannot be "
            "chosen: leave the number out, for the first validation batch",
        )
        return next(endless(setup.val_batches, "validation batches"))

    def _validation(self, setup: Setup, options: ValidationOptions) -> Validation | None:
        if options.validation == "none":
            return None
        require(
            setup.val_batches is not None,
            f"validation={options.validation!r}, but setup {self.task.setup!r} has no val_batches",
        )
        assert setup.val_batches is not None
        if options.validation == "full":
            return Validation(list(setup.val_batches), batch_loss=setup.evaluation_loss)
        size = options.sample_size(self.batch_size)
        sample = self._held_out(setup, size, options.validation_sample)
        return Validation([sample], setup.val_batches, FULL_EVALUATIONS, setup.evaluation_loss)

    def _first_batches(self, setup: Setup) -> list[Any]:
        count = 1 if self.task.setup is None else COMPARED_BATCHES
        with seeded(self.task.data_seed):
            return list(itertools.islice(endless(setup.train_batches, "training batches"), count))

    def _check_setup(self) -> tuple[str, int]:
        """Take a step with a setup, and return the digest of its data and the batch size."""
        setup = self.setup()
        batches = self._first_batches(setup)
        if self.task.setup is not None:
            self._require_equal(setup, batches, self.setup())
        batch = batches[0]
        size = examples_in(batch)
        setup.to(self.device, layout_of(self.task))
        with seeded(self.task.data_seed):
            require_repeatable("train_batches", setup.train_batches)
            held = []
            if setup.val_batches is not None:
                held = [next(endless(setup.val_batches, "validation batches"))]
                require_repeatable("val_batches", setup.val_batches)
            if self.data is not None:
                # Two are enough to see, and batch norm needs two: every job of a study is checked.
                batch, *held = [[part[:2] for part in each] for each in (batch, *held)]
            # Some models return several outputs in one of the two modes.
            with torch.no_grad():
                self._check_output(setup, batch)
            options = replace(self.task, accumulate=1)
            take_step = TrainingStep(
                setup.model, setup.optimizer, setup.training_loss, options, self.device
            )
            take_step(iter([batch]))
            # After the step, in which an error of both modes is found first.
            with Evaluation([setup.model, *setup.losses])():
                self._check_output(setup, batch)
                for each in held:
                    evaluated_loss("val_batches", setup.evaluation_loss, self.on_device(each))
        digest = setup.data_digest or _content([batch, *held])
        if self.ranks is not None:
            size = self._agreed_size(setup, size, digest, batches)
            if self.ranks.is_first:
                self._warn_unless_mean(setup, batches[0])
        return digest, size

    def _warn_unless_mean(self, setup: Setup, batch: Any) -> None:
        """Warn where the loss of a batch is not the mean of those of its parts on the ranks."""
        assert self.ranks is not None
        if is_shared(setup.train_batches):
            return
        count, most = count_examples(batch), max(MEAN_OF, self.ranks.share.size)
        size = max(n for n in range(1, most + 1) if count % n == 0)
        shares = [Share(index, size) for index in range(size)]
        parts = [next(iter(SharedBatches([batch], share))) for share in shares]
        # A model may have no loss in evaluation mode, in which no example depends on the others.
        with Evaluation([setup.model, *setup.losses])(), suppress(LRRTError):
            whole, *of_parts = (
                float(evaluated_loss("train_batches", setup.training_loss, self.on_device(each)))
                for each in (batch, *parts)
            )
            if not isclose(whole, fmean(of_parts), rel_tol=SAME_MEAN):
                warnings.warn(
                    "the loss of a batch is not the mean of those of its parts, as a sum or a "
                    "weighted mean is not: several processes minimise the mean of their losses",
                    stacklevel=2,
                )

    def _agreed_size(self, setup: Setup, size: int, digest: str, batches: list[Any]) -> int:
        """Return the size of the batch that the ranks divide, and which all of them have drawn."""
        assert self.ranks is not None
        if is_shared(setup.train_batches):
            self.ranks.require_equal("data", setup.data_digest or "")
            return size * self.ranks.share.size
        size = count_examples(batches[0])
        self.ranks.options.require_divided(size, "a batch of the setup")
        next(iter(SharedBatches(batches, self.ranks.share)))  # raises if it cannot be divided
        self.ranks.require_equal("data", f"{digest} {_content(batches)}")
        return size

    def _check_output(self, setup: Setup, batch: Any) -> None:
        if self.data is not None:
            outputs, classes = self.data.outputs, self.data.num_classes is not None
            check_output(setup.model, batch[0], outputs, self.task.model, classes)

    def _require_equal(self, setup: Setup, batches: list[Any], other: Setup) -> None:
        require(
            setup.model is not other.model and setup.optimizer is not other.optimizer,
            "two calls gave the same object: make a new model and a new optimizer at every call; "
            "only data may be cached",
        )
        ours, theirs = (weights.digest(weights.state_of(made.model)) for made in (setup, other))
        require(
            ours == theirs,
            "two calls with one seed gave different weights: draw them from torch's global random "
            "state, which is seeded before the call, and make a new model at every call",
        )
        require(
            [*map(_content, batches)] == [*map(_content, self._first_batches(other))],
            "two calls with one seed gave different first batches: shuffle by torch's global "
            "random state, or by a generator that the factory makes and seeds",
        )


_numbers = itertools.count()
"""Of the tasks that a process prepares."""
_prepared: dict[int, PreparedTask] = {}
"""What this process, which is not rank 0, has prepared, by the number on rank 0."""


def _prepared_again(number: int, task: Task, runtime: Runtime) -> PreparedTask:
    """Return what stands for a prepared task of rank 0 here; it is made the first time."""
    if number not in _prepared:
        _prepared[number] = PreparedTask(task, runtime)
    return _prepared[number]


@contextmanager
def errors_of(task: Task) -> Iterator[None]:
    """Turn errors of the block, also of the user's code in it, into one line that names a setup."""
    try:
        yield
    except LRRTError as error:
        _, line = loader_error(error)
        own = task.setup is None or line.startswith("setup ")
        raise LRRTError(line if own else f"setup {task.setup!r}: {line}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a SystemExit, which would end the command without a word
        if _is_out_of_memory(error):
            batches = "its batches" if task.setup else f"batch_size={task.batch_size}"
            raise LRRTError(
                f"{task.short_name} ran out of memory with {batches} ({first_line(error)}): lower "
                "the batch size, with accumulate to keep the effective one, or use precision=bf16, "
                "a smaller model, or a device with more memory"
            ) from error
        loss = task.loss or "by default"
        named = (getattr(task, kind) for kind in NAMES)
        cause = cause_of(error, next((n for n in named if isinstance(n, NameFromRun)), None))
        ranks = current()
        # Not all that a model or an optimizer computes can be computed with parts of its tensors.
        other = "" if ranks is None or ranks.options.strategy == "ddp" else ", or use strategy=ddp"
        raise LRRTError(
            f"setup {task.setup!r} raised {cause}: correct the factory or what it returns{other}"
            if task.setup is not None
            else f"model {task.model!r}, optimizer {task.optimizer!r} and loss {loss!r} on dataset "
            f"{task.dataset!r} raised {cause}: choose others, or correct them{other}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine had too little memory."""
    # On the CPU, torch raises a plain RuntimeError.
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "DefaultCPUAllocator: " in str(error) or "out of memory" in str(error)


def _content(batch: Any) -> str:
    """Return a digest of the tensors and arrays in a batch."""
    leaves = enumerate(tensors_in(batch))
    return weights.digest({f"{index:06}": torch.as_tensor(leaf) for index, leaf in leaves})
