"""The range test on LightningModules, beside Lightning's own Trainer."""

import copy
import importlib
import warnings
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRTError, digest, range_test, seeded, suggest
from lrrt_stage.adapters import from_lightning, set_lightning_lr
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.state.weights import state_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip(
        "lightning.pytorch",
        reason="lightning is not installed: pip install 'lrrt-stage[lightning]'",
    )
    torchmetrics = pytest.importorskip("torchmetrics")

ROOT = Path(__file__).parents[3]
IMAGES, LABELS = load_digits(return_X_y=True)
DATA = TensorDataset(torch.tensor(IMAGES / 16, dtype=torch.float32), torch.tensor(LABELS))


class Digits(lightning.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(stage)
        self.train, self.val = torch.utils.data.random_split(DATA, [1400, 397])

    def train_dataloader(self):
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 64)


class Classifier(lightning.LightningModule):
    """It logs, counts, keeps outputs and a metric, as examples of Lightning do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.outputs = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        output = self.net(x)
        loss = cross_entropy(output, y)
        self.accuracy(output, y)
        self.log("loss", loss)
        self.log_dict({"accuracy": self.accuracy})
        self.outputs.append(loss)
        if self.trainer.training and self.global_step >= 0:
            LOSSES.append(loss.item())
            INDICES.append(batch_idx)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


LOSSES, INDICES = [], []


@pytest.fixture(autouse=True)
def empty():
    LOSSES.clear()
    INDICES.clear()


@pytest.fixture
def pair():
    with seeded(0):
        yield Classifier(), Digits()


def variant(**methods):
    """A module with some methods of its own."""
    return type("Variant", (Classifier,), methods)()


def trainer(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(
            default_root_dir=folder, accelerator="cpu", devices=1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            **{"max_epochs": 1, "logger": False} | options,
        )  # fmt: skip


def fit(module, data, folder, **options):
    fit_with(trainer(folder, **options), module, data)


def fit_with(trainer, module, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)


def ordered(examples=1400):
    """A loader with the same order at every call, wherever the global random states are."""
    data = TensorDataset(*DATA[:examples])
    return DataLoader(data, 64, shuffle=True, generator=torch.Generator().manual_seed(0))


def test_the_first_loss_is_that_of_lightnings_own_training(pair, tmp_path):
    class Ordered(Digits):
        def train_dataloader(self):
            return ordered(len(DATA))

    module, data = pair[0], Ordered()
    module.net[3].p = 0.0
    curve = range_test(**from_lightning(module, data), iterations=40)
    assert curve.loss.tolist() == pytest.approx(LOSSES[: len(curve)], rel=1e-6)
    assert INDICES[:32] == [*range(29), 0, 1, 2]  # counted anew in the second pass
    LOSSES.clear()
    fit(module, data, tmp_path, limit_train_batches=2, num_sanity_val_steps=0)
    assert LOSSES[0] == curve.loss[0]
    assert len(LOSSES) == 2


SETTINGS = {
    "nothing": {},
    "clipping": {"gradient_clip_val": 0.05},
    "its algorithm": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"},
    "no clipping": {"gradient_clip_val": 0},
    "accumulation": {"accumulate_grad_batches": 3},
    "precision": {"precision": "bf16-mixed"},
}


def losses_of_both(module, make_data, folder, **options):
    """Losses of the test, at the learning rate of the training, and those of the training."""
    with_trainer, ramp = trainer(folder, **options), {"lr_start": 0.1, "lr_end": 0.100001}
    range_test(**from_lightning(module, make_data(), trainer=with_trainer), iterations=10, **ramp)
    tested = LOSSES[:9]  # of three steps, with accumulation
    LOSSES.clear()
    fit_with(with_trainer, module, make_data())
    return tested, LOSSES[: len(tested)]


@pytest.mark.parametrize("setting", SETTINGS)
def test_steps_are_those_of_the_trainer(setting, pair, tmp_path):
    pair[0].net[3].p = 0.0
    tested, trained = losses_of_both(pair[0], ordered, tmp_path, **SETTINGS[setting])
    assert len(tested) == 9
    assert tested == pytest.approx(trained, rel=1e-4)


def test_a_keyword_has_precedence_over_the_trainer(pair, tmp_path):
    options = {"gradient_clip_val": 0.5, "precision": "16-mixed", "accumulate_grad_batches": 2}
    arguments = from_lightning(*pair, trainer=trainer(tmp_path, **options))
    assert arguments["step"].clip_norm == 0.5
    assert arguments["step"].accumulate == 2
    range_test(**arguments, iterations=10, accumulate=1)
    assert len(LOSSES) == 10
    assert from_lightning(*pair)["step"] == StepOptions()


def test_modules_in_evaluation_mode_stay_in_it_as_in_fit(pair, tmp_path):
    module = pair[0]
    module.net[1].eval()
    module.net[3].eval()
    tested, trained = losses_of_both(module, ordered, tmp_path)
    assert tested == pytest.approx(trained, rel=1e-4)
    assert [part.training for part in module.net] == [True, False, True, False, True]


def several(self, batch, batch_idx):
    parts = batch.values() if isinstance(batch, dict) else batch
    loss = sum(cross_entropy(self.net(x), y) for x, y in parts)
    LOSSES.append(loss.item())
    INDICES.append(batch_idx)
    return loss


COMBINED = {
    "list": lambda: [ordered(), ordered(300)],
    "one in a list": lambda: [ordered()],
    "dict": lambda: {"a": ordered(200), "b": ordered(300)},
    "shortest": lambda: lightning.utilities.CombinedLoader([ordered(), ordered(200)], "min_size"),
}


@pytest.mark.parametrize("form", COMBINED)
def test_several_training_loaders_are_combined_as_in_fit(form, tmp_path):
    with seeded(0):
        module = variant(training_step=several)
    module.net[3].p = 0.0
    tested, trained = losses_of_both(module, COMBINED[form], tmp_path, max_epochs=4)
    assert tested == pytest.approx(trained, rel=1e-4)
    given = COMBINED[form]()
    arguments = from_lightning(module, given, val_dataloaders=ordered())
    assert len(arguments["batches"]) == {"dict": 5, "shortest": 4}.get(form, 22)
    assert arguments["probe"] is None
    assert getattr(given, "_iterator", None) is None


class Keeping(lightning.Callback):
    def on_after_backward(self, trainer, module):
        """Have a hook."""


class Harmless(lightning.Callback):
    def on_train_end(self, trainer, module):
        """Have a hook."""


def test_what_has_no_effect_is_named_in_one_warning(pair, tmp_path):
    callbacks = [
        Keeping(), Harmless(), lightning.callbacks.EarlyStopping("loss"),
        lightning.callbacks.GradientAccumulationScheduler({4: 2}),
    ]  # fmt: skip
    module = variant(on_train_start=lambda self: None)
    unusual = trainer(
        tmp_path, callbacks=callbacks, precision="64-true", limit_train_batches=1, strategy="ddp",
        gradient_clip_val=0.1, gradient_clip_algorithm="value",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="not applied") as caught:
        arguments = from_lightning(module, pair[1], trainer=unusual)
    assert arguments["step"] == StepOptions()
    (warning,) = caught
    assert warning.filename == __file__
    assert (
        "not applied in the range test: Variant.on_train_start, gradient_clip_algorithm='value', "
        "precision='64-true', DDPStrategy, limit_train_batches, Keeping, "
        "GradientAccumulationScheduler;" in str(warning.message)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from_lightning(*pair, trainer=trainer(tmp_path, max_steps=50))


def test_loggers_may_be_called_and_write_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        self.logger.log_image("images", [batch[0]])
        self.logger.log_metrics({"loss": loss})
        self.loggers[0].experiment.log({"loss": loss})
        self.log("loss", loss, prog_bar=True)
        return loss

    curve = range_test(**from_lightning(variant(training_step=training_step), pair[1]))
    assert len(curve) > 10
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_is_set_where_loggers_read_it(pair, tmp_path):
    class Saved(Classifier):
        def __init__(self, learning_rate=0.1, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.lr = learning_rate

    module, logger = Saved(), lightning.loggers.CSVLogger(tmp_path)
    set_lightning_lr(module, 0.25)
    fit(module, pair[1], tmp_path, logger=logger, max_steps=1, log_every_n_steps=1)
    assert dict(logger.experiment.hparams) == {"learning_rate": 0.25, "width": 3}
    assert module.lr == module.hparams.learning_rate == 0.25
    with pytest.raises(LRRTError, match="Classifier has neither lr nor learning_rate"):
        set_lightning_lr(Classifier(), 0.25)


def test_training_afterwards_is_bit_equal_to_training_without(tmp_path):
    results = []
    for with_test in (False, True):
        with seeded(0):
            module, data = Classifier(), Digits()
            if with_test:
                range_test(**from_lightning(module, data), iterations=20)
            fit(module, data, tmp_path, num_sanity_val_steps=0)
        results.append(digest(state_of(module)))
    assert results[0] == results[1]


def test_module_and_datamodule_are_left_as_found(pair):
    module, data = pair
    module.accuracy.update(torch.eye(10), torch.arange(10))
    before, state = dict(vars(module)), copy.deepcopy(module.state_dict())
    metric = {name: copy.deepcopy(value) for name, value in vars(module.accuracy).items()}
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        curve = range_test(**from_lightning(module, data), iterations=20)
    assert len(curve.probe_loss) == 20
    assert vars(module) == before
    assert module.outputs == []
    assert data.trainer is None
    assert data.calls == ["prepare_data", "fit"]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.accuracy.tp, metric["tp"])
    assert module.accuracy.update_count == 1
    assert module.accuracy.compute() == 1.0
    assert torch.equal(torch.get_rng_state(), random)


def test_after_a_training_its_trainer_and_what_it_logged_are_kept(pair, tmp_path):
    module, data = pair
    fit(module, data, tmp_path)
    attached, logged = module.trainer, dict(module.trainer.logged_metrics)
    LOSSES.clear()
    assert len(range_test(**from_lightning(module, data), iterations=10)) == len(LOSSES)
    assert module.trainer is data.trainer is attached
    assert attached.logged_metrics == logged
    assert module.global_step == 22


def test_the_package_pytorch_lightning_works_as_well():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("pytorch_lightning")

    class Small(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            assert type(self.trainer) is package.Trainer
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return sgd(self)

    arguments = from_lightning(Small(), train_dataloaders=DataLoader(DATA, 64))
    assert len(range_test(**arguments, iterations=10, lr_end=1)) == 10


def test_the_curve_has_a_suggestion_that_trains(pair, tmp_path):
    module, data = pair
    lr_range = suggest(range_test(**from_lightning(module, data)))
    module.configure_optimizers = lambda: torch.optim.SGD(
        module.parameters(), lr=lr_range.max, momentum=0.9
    )
    fit(module, data, tmp_path)
    assert sum(LOSSES[-3:]) / 3 < 0.3 * LOSSES[0]


def sgd(module, **options):
    return torch.optim.SGD(module.parameters(), lr=0.1, **options)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)


FORMS = {
    "an optimizer": lambda o: o,
    "a list": lambda o: [o],
    "a tuple": lambda o: (o,),
    "two lists": lambda o: ([o], [warm_up(o)]),
    "a list and a dict": lambda o: ([o], [{"scheduler": warm_up(o), "interval": "step"}]),
    "a dict": lambda o: {"optimizer": o},
    "a dict with a scheduler": lambda o: {
        "optimizer": o, "lr_scheduler": {"scheduler": warm_up(o)}, "monitor": "loss"
    },
    "a list of dicts": lambda o: [{"optimizer": o, "lr_scheduler": warm_up(o)}],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_configure_optimizers_are_understood(form):
    def configure(self):
        groups = [
            {"params": self.net[0].parameters(), "lr": 0.01},
            {"params": self.net[4].parameters()},
        ]
        return FORMS[form](torch.optim.SGD(groups, lr=0.1))

    arguments = from_lightning(variant(configure_optimizers=configure), Digits())
    rates = []
    optimizer = arguments["optimizer"]
    range_test(
        **arguments, iterations=10, lr_end=1.0,
        progress=lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]),
    )  # fmt: skip
    # A warm-up has both groups start at zero; their ratio is that of the optimizer alone.
    assert rates[-1] == pytest.approx([0.1, 1.0])


def test_a_schedule_over_the_trainers_estimated_steps_is_left_out(pair):
    _, data = pair

    def configure(self):
        steps.append(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(sgd(self), 0.5, total_steps=steps[0])
        return [schedule.optimizer], [schedule]

    steps = []
    curve = range_test(**from_lightning(variant(configure_optimizers=configure), data))
    assert steps == [22]
    assert suggest(curve).max < 10


def step(result):
    def training_step(self, batch, batch_idx):
        return result(cross_entropy(self.net(batch[0]), batch[1]))

    return training_step


def test_a_step_may_return_a_dict_or_take_the_batch_alone(pair):
    def alone(self, batch):
        return {"loss": cross_entropy(self.net(batch[0]), batch[1]), "more": 1}

    for training_step in (alone, step(lambda loss: {"loss": loss})):
        with seeded(0):
            module = variant(training_step=training_step)
            arguments = from_lightning(module, pair[1])
            assert len(range_test(**arguments, iterations=10)) == 10


def test_the_hooks_of_a_batch_are_called_and_know_whether_it_trains(pair):
    calls = Mock()

    class Hooked(Digits):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"x": batch[0], "y": batch[1]}

        def on_after_batch_transfer(self, batch, dataloader_idx):
            calls(self.trainer.training)
            return batch["x"], batch["y"]

    range_test(**from_lightning(pair[0], Hooked()), iterations=10)
    assert calls.mock_calls.count(call(True)) == 10
    assert calls.mock_calls.count(call(False)) == 10


def test_loaders_may_come_from_the_module_or_be_given(pair):
    module, _ = pair
    loader = DataLoader(DATA, 64)
    arguments = from_lightning(module, train_dataloaders=loader, val_dataloaders=[loader, loader])
    assert len(arguments["batches"]) == 29
    assert torch.equal(arguments["probe"][0], DATA.tensors[0][:64])
    own = variant(train_dataloader=lambda self: loader)
    assert len(range_test(**from_lightning(own), iterations=10)) == 10
    assert from_lightning(own)["probe"] is None


def two(module):
    return [sgd(module), sgd(module)]


WRONG = {
    "its class": (lambda data: from_lightning(Classifier, data), "the class Classifier was given"),
    "a plain module": (
        lambda data: from_lightning(nn.Linear(1, 1), data),
        "Linear was given",
    ),
    "manual": (
        lambda data: from_lightning(variant(automatic_optimization=False), data),
        "automatic_optimization=False",
    ),
    "two optimizers": (
        lambda data: from_lightning(variant(configure_optimizers=two), data),
        "returned SGD, SGD",
    ),
    "no optimizer": (
        lambda data: from_lightning(variant(configure_optimizers=lambda self: None), data),
        "returned nothing",
    ),
    "no such optimizer": (
        lambda data: from_lightning(variant(configure_optimizers=two), data, optimizer=2),
        "returned SGD, SGD",
    ),
    "no data": (lambda data: from_lightning(Classifier()), "no training loaders"),
    "another trainer": (
        lambda data: from_lightning(Classifier(), data, trainer=Digits()),
        "Digits was given, which is no Trainer",
    ),
    "a step without loss": (
        lambda data: range_test(
            **from_lightning(variant(training_step=step(lambda _: None)), data)
        ),
        "training_step returned None for batch 0",
    ),
    "a step without its key": (
        lambda data: range_test(
            **from_lightning(variant(training_step=step(lambda loss: {"l": loss})), data)
        ),
        "training_step returned (a )?dict.* for batch 0",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_tested_is_refused_in_one_line(what, pair):
    make, message = WRONG[what]
    with pytest.raises(LRRTError, match=message) as caught:
        make(pair[1])
    assert "\n" not in str(caught.value)


def test_several_optimizers_are_helped_by_giving_one_or_its_index(pair):
    module = variant(configure_optimizers=lambda self: [sgd(self), sgd(self, momentum=0.5)])
    second = from_lightning(module, pair[1], optimizer=1)["optimizer"]
    assert second.param_groups[0]["momentum"] == 0.5
    arguments = from_lightning(module, pair[1], optimizer=sgd(module))
    assert len(range_test(**arguments, iterations=10)) == 10


def test_the_script_finds_a_range_that_trains(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT)
    example = importlib.import_module("examples.lightning_module")
    monkeypatch.setattr(example, "EPOCHS", 4)
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")
        lr_range, accuracy = example.main(
            accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path
        )
    assert 1e-7 < lr_range.min < lr_range.max < 100
    assert accuracy > 0.95
