"""Trainings of one's own that start again: the first attempt of each example is too high."""

import importlib
from pathlib import Path

import pytest

from mlflow_project import load_handoff

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def training_of(store, guard):
    """Check the attempts, and what the run of the training says of them; return the run."""
    *lost, last = guard.attempts
    assert lost
    assert all(attempt.is_lost for attempt in lost)
    assert not last.is_lost
    (training,) = [r for r in store.runs() if r.data.tags.get("lrrt.stage") == "own-training"]
    assert training.data.metrics["trained_lr_max"] == last.range.max
    assert load_handoff(training.info.run_id).run_id == store.one("lrrt").info.run_id
    return training


def test_a_loop_starts_again(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    source = (ROOT / "examples" / "guarded" / "loop.py").read_text("utf-8")
    names = {"__name__": "loop"}
    exec(compile(source.replace('"digits"', '"test"', 1), "loop.py", "exec"), names)

    (training,) = [r for r in store.runs() if r.data.tags.get("lrrt.stage") == "own-training"]
    assert training.data.metrics["attempts"] > 1
    assert training.data.metrics["accuracy"] > 0.8
    assert training.data.metrics["trained_lr_max"] == names["attempt"].range.max


@pytest.mark.parametrize("example", ["lightning_module", "trainer"])
def test_a_trainer_is_stopped_and_started_again(store, example):
    guard = importlib.import_module(f"examples.guarded.{example}").main()

    training = training_of(store, guard)
    assert training.data.metrics.get("accuracy", 1) > 0.5
    assert training.data.metrics.get("eval_loss", 0) < 1.5


@pytest.mark.parametrize("batches", [1, 3])
def test_lightning_shows_the_mean_loss_of_a_step(batches):
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from lrrt_stage import Attempt, LRRange
    from mlflow_project.callbacks.lightning import WatchAttempt

    seen, made = [], []

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            loss = self.layer(batch).square().mean() + batch_idx
            made.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Seen(Attempt):
        def watch(self, loss, lr=None):
            seen.append((float(loss), lr))
            return len(seen) == 3

    trainer = Trainer(
        max_epochs=2,
        accumulate_grad_batches=batches,
        callbacks=[WatchAttempt(Seen(1, LRRange(0.001, 0.01)))],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(torch.rand(60, 1), 4))
    assert len(seen) == 3
    assert len(made) == 3 * batches
    for step, (loss, lr) in enumerate(seen):
        part = made[step * batches : (step + 1) * batches]
        assert loss == pytest.approx(sum(part) / batches, rel=1e-5)
        assert lr == 0.01


def test_a_batch_that_lightning_skips_is_no_loss():
    from types import SimpleNamespace

    from lrrt_stage import Attempt, LRRange
    from mlflow_project.callbacks.lightning import WatchAttempt

    attempt = Attempt(1, LRRange(0.001, 0.01))
    trainer = SimpleNamespace(global_step=1, accumulate_grad_batches=1, optimizers=[])
    WatchAttempt(attempt).on_train_batch_end(trainer, None, {}, None, 0)
    assert not attempt.read()
    assert attempt.steps == 0


def test_a_log_of_transformers_counts_the_steps_since_the_last_one():
    from types import SimpleNamespace

    from lrrt_stage import Attempt, LRRange
    from mlflow_project.callbacks.transformers import WatchAttempt

    attempt = Attempt(1, LRRange(0.001, 0.01))
    watch, control = WatchAttempt(attempt), SimpleNamespace(should_training_stop=False)
    watch.on_train_begin(None, SimpleNamespace(global_step=100), control)
    watch.on_log(None, SimpleNamespace(global_step=105), control, {"loss": 1.0})
    watch.on_log(None, SimpleNamespace(global_step=107), control, {"eval_loss": 1.0})
    attempt.read()
    assert attempt.steps == 5
    watch.on_log(None, SimpleNamespace(global_step=125), control, {"loss": float("nan")})
    assert control.should_training_stop
