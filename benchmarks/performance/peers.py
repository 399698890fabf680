"""Other learning-rate finders, over the same model and batches, for as many iterations.

None of them stops early here, so that the number of steps is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.performance.problems import Problem
from benchmarks.quiet import quiet

__all__ = ["PEERS", "Peer", "installed"]

LR_START, LR_END = 1e-7, 1e-3


def torch_lr_finder(
    problem: Problem, loader: DataLoader, iterations: int, folder: Path
) -> Callable[[], None]:
    """``LRFinder.range_test``, and ``reset``, which restores the model and the optimizer."""
    from torch_lr_finder import LRFinder

    def find() -> None:
        for group in problem.optimizer.param_groups:
            group["lr"] = LR_START
        finder = LRFinder(
            problem.model, problem.optimizer, torch.nn.CrossEntropyLoss(), problem.device
        )
        finder.range_test(loader, end_lr=LR_END, num_iter=iterations, diverge_th=1e9)
        finder.reset()

    return find


def fastai(
    problem: Problem, loader: DataLoader, iterations: int, folder: Path
) -> Callable[[], None]:
    """``Learner.lr_find``, which saves the model to a file, and loads it at the end."""
    import fastai.callback.schedule  # noqa: F401 - adds lr_find
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    learner = Learner(
        DataLoaders(loader, loader, device=problem.device),
        problem.model,
        loss_func=cross_entropy,
        opt_func=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9)),
        path=folder,
        train_bn=True,
    )

    def find() -> None:
        learner.lr_find(
            start_lr=LR_START,
            end_lr=LR_END,
            num_it=iterations,
            stop_div=False,
            show_plot=False,
        )

    return find


def lightning(
    problem: Problem, loader: DataLoader, iterations: int, folder: Path
) -> Callable[[], None]:
    """``Tuner.lr_find``, which saves a checkpoint, and loads it at the end."""
    import lightning
    from lightning.pytorch.tuner import Tuner

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = copy.deepcopy(problem.model), LR_START

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    module = Module()

    def find() -> None:
        trainer = lightning.Trainer(
            accelerator="cpu" if problem.device.type == "cpu" else "gpu",
            devices=1,
            max_epochs=1000,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        Tuner(trainer).lr_find(
            module,
            train_dataloaders=loader,
            min_lr=LR_START,
            max_lr=LR_END,
            num_training=iterations,
            early_stop_threshold=None,
            update_attr=False,
        )

    return find


def ignite(
    problem: Problem, loader: DataLoader, iterations: int, folder: Path
) -> Callable[[], None]:
    """``FastaiLRFinder.attach``, which restores the model and the optimizer."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    trainer = create_supervised_trainer(
        problem.model, problem.optimizer, cross_entropy, device=problem.device
    )
    saved = {"model": problem.model, "optimizer": problem.optimizer}

    def find() -> None:
        finder = FastaiLRFinder()
        with finder.attach(
            trainer,
            to_save=saved,
            num_iter=iterations,
            start_lr=LR_START,
            end_lr=LR_END,
            diverge_th=1e9,
        ) as with_finder:
            with_finder.run(loader)

    return find


@dataclass(frozen=True)
class Peer:
    """Another learning-rate finder."""

    package: str
    """As it is imported."""
    called: str
    """What is measured of it."""
    make: Callable[[Problem, DataLoader, int, Path], Callable[[], None]]

    def finder(
        self, problem: Problem, loader: DataLoader, iterations: int, folder: Path
    ) -> Callable[[], None]:
        """Return a function that runs the finder once."""
        with quiet():
            find = self.make(problem, loader, iterations, folder)

        def quietly() -> None:
            with quiet():
                find()

        return quietly


PEERS = {
    "torch-lr-finder": Peer("torch_lr_finder", "LRFinder.range_test and reset", torch_lr_finder),
    "fastai": Peer("fastai", "Learner.lr_find", fastai),
    "Lightning": Peer("lightning", "Tuner.lr_find", lightning),
    "Ignite": Peer("ignite", "FastaiLRFinder.attach and run", ignite),
}
"""Name -> another learning-rate finder."""


def installed(name: str) -> bool:
    """Return whether a peer can be imported."""
    return find_spec(PEERS[name].package) is not None
