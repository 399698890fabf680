"""The suggestions of other LR finders: their own code, run as their documentation says.

Each is a function from a problem and a seed to the learning rates that it suggests, by the name
of the rule; None where it suggests none. Ranges and numbers of iterations are its defaults;
Ignite's, which would begin at the optimizer's learning rate and take one epoch, are fastai's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.quiet import quiet
from benchmarks.suggestions.problems import Problem
from lrrt_stage import seeded

__all__ = ["PEERS", "installed_peers", "peer_suggestions"]

Suggestions = dict[str, float | None]


def fastai(
    problem: Problem, seed: int, lr_start: float = 1e-7, iterations: int = 100
) -> Suggestions:
    """``Learner.lr_find`` with all of its four rules."""
    from fastai.callback.schedule import minimum, slide, steep, valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    model, optimizer, batches = problem.start(seed)
    group = optimizer.param_groups[0]
    # fastai makes the optimizer itself, from its class and these.
    options = {
        name: group[name] for name in ("momentum", "betas", "weight_decay", "eps") if name in group
    }
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            DataLoaders(batches, batches),
            model,
            loss_func=problem.loss_fn,
            opt_func=partial(OptimWrapper, opt=partial(type(optimizer), **options)),
            path=Path(folder),
            train_bn=True,
        )
        found = learner.lr_find(
            start_lr=lr_start,
            num_it=iterations,
            suggest_funcs=(minimum, steep, valley, slide),
            show_plot=False,
        )
    return {f"fastai {name}": float(lr) for name, lr in found._asdict().items()}


def torch_lr_finder(problem: Problem, seed: int) -> Suggestions:
    """``LRFinder.range_test`` and the suggestion of its ``plot``."""
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder

    model, optimizer, batches = problem.start(seed)
    for group in optimizer.param_groups:
        group["lr"] = 1e-7
    finder = LRFinder(model, optimizer, problem.loss_fn, device="cpu")
    finder.range_test(batches, end_lr=10, num_iter=100)
    figure, axes = plt.subplots()
    try:
        _, lr = finder.plot(suggest_lr=True, ax=axes)
    except RuntimeError:  # "Need at least … iterations to suggest a learning rate"
        return {"torch-lr-finder": None}
    finally:
        plt.close(figure)
    return {"torch-lr-finder": float(lr)}


def lightning(problem: Problem, seed: int) -> Suggestions:
    """``Tuner.lr_find``."""
    import lightning
    from lightning.pytorch.tuner import Tuner

    model, optimizer, batches = problem.start(seed)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = model, 1e-3

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return problem.loss_fn(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            for group in optimizer.param_groups:
                group["lr"] = self.lr
            return optimizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1000,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        found = Tuner(trainer).lr_find(Module(), train_dataloaders=batches, update_attr=False)
    lr = None if found is None else found.suggestion()
    return {"Lightning": None if lr is None else float(lr)}


def ignite(problem: Problem, seed: int) -> Suggestions:
    """``FastaiLRFinder.attach`` and its ``lr_suggestion``."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    model, optimizer, batches = problem.start(seed)
    trainer = create_supervised_trainer(model, optimizer, problem.loss_fn, device="cpu")
    finder = FastaiLRFinder()
    saved = {"model": model, "optimizer": optimizer}
    with finder.attach(
        trainer, to_save=saved, num_iter=100, start_lr=1e-7, end_lr=10.0
    ) as with_finder:
        with_finder.run(batches)
    try:
        return {"Ignite": float(finder.lr_suggestion())}
    except RuntimeError:  # "unexpected curve shape": it has no suggestion
        return {"Ignite": None}


PEERS: dict[str, Callable[..., Suggestions]] = {
    "fastai": fastai,
    "torch_lr_finder": torch_lr_finder,
    "lightning": lightning,
    "ignite": ignite,
}
"""Name of a package, as it is imported -> what it suggests."""


def installed_peers() -> list[str]:
    """Return the names of those that can be imported."""
    return [name for name in PEERS if find_spec(name)]


def peer_suggestions(
    peer: str, problem: Problem, seed: int, options: tuple[tuple[str, float], ...] = ()
) -> Suggestions:
    """Return what a peer suggests; ``options`` are names and values for its function here."""
    with quiet(), seeded(seed):
        return PEERS[peer](problem, seed, **dict(options))
