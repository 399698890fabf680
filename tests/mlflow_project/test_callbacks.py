"""The learning rates that the callbacks set: a schedule keeps its form, with another peak."""

from __future__ import annotations

import warnings

import mlflow
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from lrrt_stage import LRRange
from mlflow_project.callbacks import apply

STEPS = 20


class Found:
    """A hand-off whose narrowed range ends at 1."""

    def narrowed(self):
        return LRRange(0.1, 1.0)


def rates(make, monkeypatch=None):
    """The learning rates of a schedule, after the callback if ``monkeypatch`` is given."""
    groups = [{"params": nn.Linear(1, 1).parameters(), "lr": lr} for lr in (0.02, 0.2)]
    optimizer = torch.optim.SGD(groups)
    schedule = make(optimizer)
    if monkeypatch is not None:
        monkeypatch.setattr(apply, "track_range_test", lambda **_: Found())
        apply.test_and_apply({"optimizer": optimizer}, [schedule], {})
    seen = []
    for _ in range(STEPS):
        seen += [[group["lr"] for group in optimizer.param_groups]]
        optimizer.step()
        schedule.step()
    return torch.tensor(seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedules.OneCycleLR(o, [0.02, 0.2], STEPS + 1, cycle_momentum=False),
        lambda o: schedules.CyclicLR(o, [2e-4, 2e-3], [0.02, 0.2], 5, cycle_momentum=False),
        lambda o: schedules.CosineAnnealingLR(o, STEPS, eta_min=0.001),
        lambda o: schedules.LambdaLR(o, lambda step: min(step / 5, 1)),
        lambda o: schedules.ConstantLR(o, 1.0),
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.1, 1, 5), schedules.CosineAnnealingLR(o, 15)], [5]
        ),
    ],
)
def test_a_schedule_keeps_its_form_and_gets_the_peak(make, monkeypatch):
    before, after = rates(make), rates(make, monkeypatch)

    assert torch.allclose(after, before * 5, rtol=1e-6)
    assert after.max() <= 1 + 1e-9


@pytest.mark.slow
def test_the_run_of_an_mlflow_logger_is_the_parent_wherever_it_is(store, tmp_path):
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import MLFlowLogger
    from torch.utils.data import DataLoader, TensorDataset

    from examples.tracked.lightning_module import Classifier
    from mlflow_project.callbacks.lightning import LRRangeTest

    data = TensorDataset(torch.rand(256, 64), torch.arange(256) % 10)
    loader = DataLoader(data, 32)
    logger = MLFlowLogger("another", tracking_uri=mlflow.get_tracking_uri())
    callback = LRRangeTest(iterations=30, lr_end=10)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=logger, callbacks=[callback], **quiet)
    trainer.fit(Classifier(), loader, loader)

    training = mlflow.get_run(logger.run_id)
    test = mlflow.get_run(callback.handoff.run_id)
    assert test.data.tags["mlflow.parentRunId"] == logger.run_id
    assert test.info.experiment_id == training.info.experiment_id
    assert training.info.status == "FINISHED"
    assert training.data.tags["lrrt.source_run_id"] == test.info.run_id
    assert float(training.data.params["lr"]) == callback.handoff.narrowed().max


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_the_test_takes_the_data_of_the_fit_and_autologging_the_rate_that_it_found(store):
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from mlflow_project.callbacks.lightning import LRRangeTest

    loader = DataLoader(TensorDataset(torch.rand(256, 64), torch.arange(256) % 10), 32)

    class Scaled(LightningDataModule):
        def train_dataloader(self):
            return loader

        val_dataloader = train_dataloader

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 10, batch[1]

    class Classifier(LightningModule):
        """Without a validation_step, so that Lightning reads no validation batches."""

        def __init__(self, largest):
            super().__init__()
            self.net, self.largest = nn.Linear(64, 10), largest

        def training_step(self, batch):
            assert (batch[0].max() > 1) == (self.largest > 1)
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    loaders = {"train_dataloaders": loader, "val_dataloaders": loader}
    mlflow.pytorch.autolog(log_models=False)
    try:
        for largest, data in ((10, {"datamodule": Scaled()}), (1, loaders)):
            callback = LRRangeTest(iterations=30, lr_end=10)
            trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
            with mlflow.start_run() as run, warnings.catch_warnings():
                warnings.filterwarnings("error", "not applied")
                trainer.fit(Classifier(largest), **data)
            assert callback.handoff.curve.probe_loss is not None
            recorded = mlflow.get_run(run.info.run_id).data.params
            assert float(recorded["lr"]) == pytest.approx(callback.handoff.narrowed().max)
    finally:
        mlflow.pytorch.autolog(disable=True)
