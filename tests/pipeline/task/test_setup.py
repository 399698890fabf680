"""Trainings of the user's own, made by a factory: what they need, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanMetric

from lrrt_stage import LRRange, RangeTestOptions, digest
from pipeline import RangeTestPlan, RefineOptions, Runtime, Setup, Task, TrainOptions
from pipeline.task.plan import ValidationOptions
from pipeline.task.prepared import PreparedTask
from pipeline.training.loop import train
from pipeline.training.refinement import best_range, refine

SOURCE = """
import itertools
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanAbsoluteError
from pipeline import Setup

CALLS = itertools.count()
x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
y = x.sum(1, keepdim=True)


def mae(output, target):
    return (output - target).abs().mean()


def parts(batch_size=16, **more):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
    made = dict(
        model=model,
        optimizer=torch.optim.RMSprop(
            [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters()}], 0.01
        ),
        train_batches=DataLoader(TensorDataset(x[:64], y[:64]), batch_size, shuffle=True),
        val_batches=DataLoader(TensorDataset(x[64:], y[64:]), 16),
        loss_fn=nn.MSELoss(),
        metrics={"mae": (mae, "min"), "mean_error": MeanAbsoluteError()},
    )
    return made | more


def regression(batch_size=16):
    return Setup(**parts(batch_size))


def unvalidated():
    return Setup(**parts(val_batches=None))


def of_batches():
    # The model computes nothing by itself: the loss knows what is in a batch.
    data = [{"first": x[i : i + 16], "second": {"y": y[i : i + 16]}} for i in (0, 16, 32, 48)]
    return Setup(
        **parts(
            train_batches=data,
            val_batches=data[:1],
            loss_fn=None,
            batch_loss=lambda model, batch: mae(model(batch["first"]), batch["second"]["y"]),
            metrics={"best": (lambda output, batch: mae(output, batch["second"]["y"]), "min")},
        )
    )


def nothing():
    return None


def a_class():
    return Setup


def no_optimizer():
    return Setup(**parts(optimizer=torch.optim.SGD))


def foreign_optimizer():
    return Setup(**parts(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)))


def an_iterator():
    return Setup(**parts(train_batches=iter([])))


class Endless:
    def __iter__(self):
        return iter([(x, y)])


def without_a_length():
    return Setup(**parts(train_batches=Endless()))


def a_dataset():
    return Setup(**parts(val_batches=TensorDataset(x, y)))


def long_name():
    return Setup(**parts(metrics={"a" * 300: (mae, "min")}))


def name_of_a_file():
    return Setup(**parts(metrics={"a/../b": (mae, "min")}))


def number_as_digest():
    return Setup(**parts(data_digest=5))


def no_probe():
    return Setup(**parts(probe=lambda count: None))


def without_direction():
    return Setup(**parts(metrics={"mae": mae}))


def per_example():
    return Setup(**parts(loss_fn=nn.MSELoss(reduction="none")))


def many_numbers():
    return Setup(**parts(metrics={"all": (lambda output, target: output, "max")}))


def other_weights():
    made = parts()
    torch.nn.init.constant_(made["model"][0].bias, next(CALLS))
    return Setup(**made)


def other_order():
    generator = torch.Generator()
    generator.seed()
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator)
    return Setup(**parts(train_batches=loader))


class OwnLoader:
    def __init__(self, begin):
        self.begin = begin

    def __len__(self):
        return 4

    def __iter__(self):
        return self.begin()


def counting_loader():
    def begin():
        yield x, y
        while True:
            yield x + next(CALLS), y

    return Setup(**parts(train_batches=OwnLoader(begin)))


def infinite_loader():
    return Setup(**parts(train_batches=OwnLoader(lambda: itertools.repeat((x, y)))))


def read_once(name="val_batches", kind=iter):
    iterator = kind([(x, y)] * 6)
    return Setup(**parts(**{name: OwnLoader(lambda: iterator)}))


class Iterates:
    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


def read_once_by_a_class():
    return read_once(kind=Iterates)


def read_once_in_training():
    return read_once("train_batches")


class Detector(nn.Linear):
    def forward(self, x, y):
        error = super().forward(x) - y
        return {"box": error.square().mean()} if self.training else [{"boxes": x} for x in error]


def detector(**more):
    model = Detector(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Setup(**parts(model=model, optimizer=optimizer, loss_fn=None, metrics={}) | more)


def detector_with_a_loss():
    return detector(batch_loss=lambda model, batch: sum(model(*batch).values()))


def missing():
    made = parts()
    del made["train_batches"]
    return Setup(**made)


def fails_late():
    class Bad(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            if index == 33:
                raise OSError("row 33 is damaged")
            return x[index], y[index]

    return Setup(**parts(val_batches=DataLoader(Bad(), 16)))
"""
CPU = Runtime(device="cpu")


@pytest.fixture(autouse=True)
def module(write_module):
    write_module("setups_for_tests", SOURCE)


def prepared(factory="regression", **changes) -> PreparedTask:
    return PreparedTask(Task(setup=f"setups_for_tests:{factory}", **changes), CPU)


def test_every_start_is_the_same_and_its_weights_are_those_of_the_factory():
    made = prepared(seed=5)
    torch.manual_seed(5)
    expected = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
    state = made.initial_weights()

    assert digest(state) == digest(expected.state_dict())
    first, second = made.start(state), made.start(state)
    assert first.model is not second.model
    assert digest(first.model.state_dict()) == digest(second.model.state_dict())


def test_the_range_test_and_the_training_share_their_first_loss_and_the_ratio_of_the_groups():
    made = prepared()
    state = made.initial_weights()
    curve = made.range_test(state, RangeTestPlan(RangeTestOptions(iterations=20)))
    options = TrainOptions(epochs=2)
    training = train(made, state, LRRange(1e-4, 1e-3), options)

    assert training.train_loss[0] == curve.loss[0]
    assert len(training.train_loss) == 2 * 4
    rates = [group["lr"] for group in training.setup.optimizer.param_groups]
    assert rates[1] == pytest.approx(rates[0] / 10)
    assert curve.probe_loss is not None
    assert training.epochs[-1].metrics.keys() == {"mae", "mean_error"}
    # 26 examples in batches of 16: the second one counts less.
    assert training.epochs[-1].metrics["mae"] == pytest.approx(
        training.epochs[-1].metrics["mean_error"], rel=1e-5
    )


def test_a_training_repeats_bit_for_bit_and_goes_on_from_its_checkpoint(tmp_path):
    made = prepared()
    state, lr_range, options = made.initial_weights(), LRRange(1e-3, 1e-2), TrainOptions(epochs=3)
    whole = train(made, state, lr_range, options)

    def stop(training):
        if len(training.epochs) == 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(made, state, lr_range, options, on_epoch=stop, checkpoint=checkpoint)
    resumed = train(made, state, lr_range, options, checkpoint=checkpoint)

    assert resumed.train_loss == whole.train_loss
    assert digest(resumed.model.state_dict()) == digest(whole.model.state_dict())


def test_the_data_seed_decides_the_order():
    def losses(data_seed: int) -> list[float]:
        made, plan = prepared(data_seed=data_seed), RangeTestPlan(RangeTestOptions(iterations=10))
        return made.range_test(made.initial_weights(), plan).loss.tolist()

    assert losses(0) == losses(0) != losses(1)


def test_arguments_reach_the_factory(complains):
    assert prepared(setup_args={"batch_size": 8}).batch_size == 8
    with complains("'setups_for_tests:regression' takes", "width", "setup_args"):
        prepared(setup_args={"width": 8})


def test_without_validation_rules_read_the_training_loss_and_a_search_is_refused(complains):
    made = prepared("unvalidated")
    state = made.initial_weights()
    assert made.range_test(state).probe_loss is None
    training = train(made, state, LRRange(1e-3, 1e-2), TrainOptions(epochs=1))
    assert training.epochs[0].values() == {}
    assert not training.diverged
    with complains("validation='sample'", "no val_batches"):
        made.range_test(state, RangeTestPlan(validation=ValidationOptions("sample")))
    with complains("refine", "no val_batches"):
        refine(made, state, LRRange(1e-3, 1e-2), RefineOptions(), study_name="none")


def test_batches_of_any_form_have_a_loss_of_their_own():
    made = prepared("of_batches")
    state = made.initial_weights()
    ramp = RangeTestOptions(iterations=20, stop_multiple=None)
    assert len(made.range_test(state, RangeTestPlan(ramp))) == 20
    training = train(made, state, LRRange(1e-3, 1e-2), TrainOptions(epochs=2))
    assert set(training.epochs[-1].values()) == {"val_loss", "val_best"}


@pytest.mark.parametrize("kind", ["sample", "full"])
def test_the_training_losses_are_the_same_with_and_without_validation(kind):
    made, ramp = prepared(), RangeTestOptions(iterations=20, stop_multiple=None)
    state = made.initial_weights()
    with_it = made.range_test(state, RangeTestPlan(ramp, validation=ValidationOptions(kind)))
    off = RangeTestPlan(ramp, validation=ValidationOptions(probe=0))

    assert with_it.loss.tolist() == made.range_test(state, off).loss.tolist()
    assert len(with_it.val_loss) == 20


def test_a_search_improves_a_metric_in_its_direction(tmp_path, complains):
    made = prepared()
    state, lr_range = made.initial_weights(), LRRange(1e-4, 1e-2)
    storage = f"sqlite:///{tmp_path}/optuna.db"
    options = RefineOptions(trials=3, metric="mae", storage=storage)
    study = refine(made, state, lr_range, options, study_name="mae")
    assert study.direction.name == "MINIMIZE"
    assert study.best_value == min(trial.value for trial in study.trials)
    assert best_range(study, lr_range) is not None
    with complains("unknown metric 'accuracy'", "mae"):
        refine(made, state, lr_range, RefineOptions(metric="accuracy"), study_name="x")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nothing", ["returned None", "pipeline.Setup"]),
        ("a_class", ["returned the class Setup", "pipeline.Setup"]),
        ("missing", ["train_batches"]),
        ("no_optimizer", ["optimizer is the class SGD"]),
        ("foreign_optimizer", ["holds none of this model's parameters"]),
        ("an_iterator", ["train_batches is list_iterator"]),
        ("without_a_length", ["train_batches has no batch or no length"]),
        ("a_dataset", ["val_batches is TensorDataset", "DataLoader"]),
        ("long_name", ["metric 'aaa", "cannot be logged"]),
        ("name_of_a_file", ["metric 'a/../b'", "cannot be logged"]),
        ("number_as_digest", ["data_digest is int"]),
        ("no_probe", ["probe function returned None"]),
        ("without_direction", ["metric 'mae'", '"max" or "min"']),
        ("per_example", ["the loss is Tensor of torch.float32 [16, 1]", "mean"]),
        ("other_weights", ["different weights", "global random state"]),
        ("other_order", ["different first batches", "shuffle"]),
        ("counting_loader", ["different first batches", "shuffle"]),
        ("read_once", ["val_batches is OwnLoader", "only once", "new iterator"]),
        ("read_once_in_training", ["train_batches is OwnLoader", "only once", "new iterator"]),
        ("detector", ["val_batches: the model returned list", "works in evaluation mode"]),
        ("detector_with_a_loss", ["val_batches: ", "'values'", "works in evaluation mode"]),
    ],
)
def test_a_setup_that_cannot_be_used_is_refused_in_one_line(complains, factory, words):
    with complains(f"'setups_for_tests:{factory}'", *words):
        made = prepared(factory)
        made.range_test(made.initial_weights())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("many_numbers", ["metric 'all'", "one number"]),
        ("fails_late", ["row 33 is damaged"]),
        ("read_once_by_a_class", ["validation batches", "only once", "new iterator"]),
    ],
)
def test_what_is_wrong_with_the_validation_is_found_before_the_training(complains, factory, words):
    made = prepared(factory)
    with complains(f"'setups_for_tests:{factory}'", *words):
        made.check_validation()
    with complains(f"'setups_for_tests:{factory}'", *words):
        train(made, made.initial_weights(), LRRange(1e-3, 1e-2), TrainOptions(epochs=50))


def test_batches_may_be_made_lazily_and_without_end():
    assert prepared("infinite_loader").batch_size == 90


def test_a_metric_of_torchmetrics_needs_a_direction_where_it_has_none(complains):
    model = nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1)), 2)

    def setup(metric) -> Setup:
        return Setup(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            train_batches=loader,
            loss_fn=nn.MSELoss(),
            metrics={"metric": metric},
        )

    assert setup(MeanAbsoluteError()).directions == {"metric": "min"}
    assert setup((MeanMetric(), "max")).directions == {"metric": "max"}
    for metric in (MeanMetric(), MeanAbsoluteError, (MeanMetric(), "up"), "mae"):
        with complains("metric 'metric' is"):
            setup(metric)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "MSELoss"}, ["loss 'MSELoss'", "choose others"]),
        ({"loss": "CrossEntropy"}, ["unknown loss", "did you mean 'CrossEntropyLoss'?"]),
        ({"loss_args": {"smoothing": 1}}, ["CrossEntropyLoss", "smoothing", "loss_args"]),
        ({"loss_args": {"reduction": "none"}}, ["the loss is Tensor of torch.float32 [2]"]),
        ({"optimizer": "sparseadam"}, ["optimizer 'sparseadam'", "choose others"]),
        ({"optimizer": "lbfgs"}, ["closure"]),
        ({"optimizer_args": {"lr": 1}}, ["sets lr"]),
        ({"optimizer_args": {"nesterof": True}}, ["nesterof", "optimizer_args"]),
    ],
)
def test_losses_and_optimizers_that_do_not_go_together_are_refused_before_any_work(
    complains, changes, words
):
    with complains(*words):
        PreparedTask(Task(model="mlp", model_args={"width": 8}, **changes), CPU)


def test_every_optimizer_and_loss_of_torch_has_its_arguments():
    changes = {"optimizer": "RMSprop", "optimizer_args": {"alpha": 0.8}, "momentum": 0.5}
    loss = {"loss": "HuberLoss", "loss_args": {"delta": 0.1}}
    made = PreparedTask(Task(dataset="diabetes", model="mlp", **changes, **loss), CPU)
    start = made.start(made.initial_weights())

    (group,) = start.optimizer.param_groups
    assert (group["alpha"], group["momentum"], group["weight_decay"]) == (0.8, 0.5, 1e-4)
    assert start.loss_fn.delta == 0.1
    training = train(made, made.initial_weights(), LRRange(1e-5, 1e-4), TrainOptions(epochs=3))
    assert training.epochs[-1].metrics["mae"] < 1
    assert training.val_loss < training.epochs[0].val_loss


def test_a_setup_that_gives_one_model_twice_is_refused(complains, write_module):
    write_module(
        "cached_for_tests", "import setups_for_tests, functools\n"
        "setup = functools.cache(setups_for_tests.regression)\n"
    )  # fmt: skip
    with complains("'cached_for_tests:setup'", "same object", "new model"):
        PreparedTask(Task(setup="cached_for_tests:setup"), CPU)


def test_what_a_module_draws_at_its_import_is_not_part_of_its_setup(write_module):
    write_module(
        "drawing_for_tests",
        "import torch\ntorch.rand(7)\nfrom setups_for_tests import regression\n",
    )
    drawn = PreparedTask(Task(setup="drawing_for_tests:regression"), CPU).initial_weights()

    assert digest(drawn) == digest(prepared().initial_weights())


def test_a_loss_with_a_state_is_restored_after_every_evaluation(write_module):
    write_module(
        "losses_for_tests",
        "import torch\nfrom torch import nn\nfrom setups_for_tests import parts\n"
        "from pipeline import Setup\n\n"
        "class Centred(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('mean', torch.zeros(()))\n"
        "        self.drop = nn.Dropout(0.5)\n\n"
        "    def forward(self, model, batch):\n"
        "        loss = (self.drop(model(batch[0])) - batch[1]).square().mean()\n"
        "        self.mean = 0.9 * self.mean + loss.detach()\n"
        "        return loss + 0.1 * self.mean\n\n"
        "def setup():\n    return Setup(**parts(batch_loss=Centred(), loss_fn=None, metrics={}))\n",
    )
    made = PreparedTask(Task(setup="losses_for_tests:setup"), CPU)
    state, ramp = made.initial_weights(), RangeTestOptions(iterations=20, stop_multiple=None)
    without = RangeTestPlan(ramp, validation=ValidationOptions(probe=0))

    with_probe = made.range_test(state, RangeTestPlan(ramp))
    assert with_probe.loss.tolist() == made.range_test(state, without).loss.tolist()
    assert with_probe.probe_loss is not None


def test_a_metric_that_is_not_a_number_is_the_worst_and_does_not_go_on_for_ever(
    tmp_path, write_module
):
    write_module(
        "nan_for_tests",
        "from setups_for_tests import parts\nfrom pipeline import Setup\n\n"
        "def setup():\n"
        "    nothing = (lambda output, target: output.sum() * float('nan'), 'max')\n"
        "    return Setup(**parts(metrics={'nothing': nothing}))\n",
    )
    made = PreparedTask(Task(setup="nan_for_tests:setup"), CPU)
    options = RefineOptions(trials=2, metric="nothing", storage=f"sqlite:///{tmp_path}/o.db")
    study = refine(made, made.initial_weights(), LRRange(1e-4, 1e-3), options, study_name="nan")

    assert len(study.trials) == 2
    assert best_range(study, LRRange(1e-4, 1e-3)) is None


def test_names_of_metrics_can_be_logged(complains):
    model = nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1)), 2)
    for name in ("loss", "a*b"):
        with complains(f"metric {name!r} cannot be logged"):
            Setup(
                model=model,
                optimizer=torch.optim.SGD(model.parameters(), 0.1),
                train_batches=loader,
                metrics={name: (lambda output, target: 0.0, "max")},
            )
