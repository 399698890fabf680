from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lrrt_stage import RangeTestOptions, digest
from lrrt_stage.state import weights
from pipeline.data.datasets import load_data
from pipeline.task.plan import RangeTestPlan, ValidationOptions
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime, Task

CPU = Runtime(device="cpu")
SMALL = {"model": "mlp", "model_args": {"width": 16}}


DIGITS = cache(lambda: load_data("digits", {}, ""))


def prepared(**changes) -> PreparedTask:
    data = None if {"dataset", "dataset_args"} & set(changes) else DIGITS()
    return PreparedTask(Task(**{**SMALL, **changes}), CPU, data)


class TestStart:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
    def test_every_start_is_the_same(self, optimizer):
        made = prepared(optimizer=optimizer, augment="crop-flip")
        state = made.initial_weights()
        first = made.start(state)
        batches = [tensor for batch in first.train_batches for tensor in batch]
        # What is done with one start must not show in the next.
        for inputs, labels in first.train_batches:
            cross_entropy(first.model(inputs), labels).backward()
            first.optimizer.step()
        second = made.start(state)

        assert digest(weights.state_of(second.model)) == digest(state)
        assert digest(weights.state_of(first.model)) != digest(state)
        assert all(parameter.grad is None for parameter in second.model.parameters())
        assert not second.optimizer.state
        again = [tensor for batch in second.train_batches for tensor in batch]
        assert all(map(torch.equal, batches, again))

    def test_the_data_seed_decides_the_order_and_the_seed_does_not(self):
        def order(**seeds) -> list[int]:
            made = prepared(**seeds)
            start = made.start(made.initial_weights())
            return [int(label) for _, labels in start.train_batches for label in labels]

        assert order(seed=1) == order(seed=2)
        assert order(data_seed=1) != order(data_seed=2)

    def test_images_and_weights_are_laid_out_as_the_task_says(self):
        made = prepared(model="cnn", model_args={"width": 4}, channels_last=True)
        model = made.start(made.initial_weights()).model

        kernels = [p for p in model.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


class TestInitialWeights:
    @pytest.mark.parametrize("init", ["own", "kaiming_uniform", "kaiming_normal", "xavier_uniform"])
    def test_one_seed_is_one_set_of_weights_whatever_the_random_state(self, init):
        torch.manual_seed(1)
        first = digest(prepared(init=init, seed=4).initial_weights())
        torch.manual_seed(2)

        assert digest(prepared(init=init, seed=4).initial_weights()) == first
        assert digest(prepared(init=init, seed=5).initial_weights()) != first

    def test_the_global_random_state_stays(self):
        state = torch.get_rng_state()
        made = prepared()
        made.start(made.initial_weights())

        assert torch.equal(torch.get_rng_state(), state)

    def test_own_is_what_the_constructor_makes_under_the_seed(self):
        torch.manual_seed(6)
        expected = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )

        assert digest(prepared(init="own", seed=6).initial_weights()) == digest(
            expected.state_dict()
        )

    def test_kaiming_uniform_has_the_bound_of_the_paper(self):
        # He et al. 2015: variance 2 / fan-in; a uniform of that variance ends at sqrt(6 / fan-in).
        state = prepared(model_args={"width": 4096, "depth": 1}).initial_weights()
        weight, bound = state["1.weight"], (6 / 64) ** 0.5

        assert float(weight.abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(weight.var()) == pytest.approx(2 / 64, rel=0.02)
        assert not state["1.bias"].any()

    def test_weights_come_from_the_file_that_the_task_names(self, tmp_path):
        state = prepared(seed=9).initial_weights()
        path = weights.save(state, tmp_path / "w.safetensors")

        assert digest(prepared(init=f"file:{path}").initial_weights()) == digest(state)

    def test_weights_of_a_run_are_those_that_are_given(self):
        state = prepared(seed=9).initial_weights()

        assert digest(prepared(init="run:abc").initial_weights(state)) == digest(state)

    def test_a_file_of_another_model_is_refused(self, complains, tmp_path):
        path = weights.save(prepared(model_args={"width": 8}).initial_weights(), tmp_path / "w.st")
        with complains("1.weight", "do not fit"):
            prepared(init=f"file:{path}").initial_weights()

    def test_a_file_that_is_not_there_is_named(self, complains):
        with complains("/no/such/file", "check the path"):
            prepared(init="file:/no/such/file").initial_weights()


class TestEvaluate:
    def test_loss_and_accuracy_are_those_of_all_images_at_once(self):
        # 360 images in batches of 64: the last one is smaller and must not count more.
        made = prepared(model="cnn", model_args={"width": 4})
        start = made.start(made.initial_weights())
        model = start.model
        for inputs, _ in made.start(made.initial_weights()).train_batches:
            model(inputs)  # statistics for the batch norm
        images, labels = made.data.val
        model.eval()
        with torch.no_grad():
            mean, std = made.data.mean[0], made.data.std[0]
            logits = model((images - mean) / std)
        loss, metrics = made.evaluate(start)

        assert loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(
            sum(logits.argmax(1).tolist()[i] == labels.tolist()[i] for i in range(360)) / 360
        )

    def test_it_changes_no_weight_and_no_statistic(self):
        made = prepared(model="cnn", model_args={"width": 4})
        start = made.start(made.initial_weights())
        model = start.model.train()
        before = digest(weights.state_of(model))
        made.evaluate(start)

        assert digest(weights.state_of(model)) == before

    def test_every_module_keeps_its_mode(self):
        made = prepared(model="cnn", model_args={"width": 4})
        start = made.start(made.initial_weights())
        model = start.model
        model[0].eval()
        before = [module.training for module in model.modules()]
        made.evaluate(start)

        assert [module.training for module in model.modules()] == before


class TestRangeTest:
    def test_it_repeats_bit_for_bit(self):
        made = prepared()
        state, plan = made.initial_weights(), RangeTestPlan(RangeTestOptions(iterations=12))

        first = made.range_test(state, plan)
        assert len(first) == 12
        assert made.range_test(state, plan) == first
        assert prepared().range_test(state, plan) == first

    def test_the_first_loss_is_that_of_the_first_batch_at_the_initial_weights(self):
        made = prepared()
        state = made.initial_weights()
        start = made.start(state)
        inputs, labels = next(iter(start.train_batches))
        expected = cross_entropy(start.model(inputs), labels).item()

        curve = made.range_test(state, RangeTestPlan(RangeTestOptions(iterations=10)))
        assert curve.loss[0] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize(
        ("model", "kernels"),
        [("cnn", {"0.weight", "3.weight", "7.weight", "12.weight"}),
         ("mlp", {"1.weight", "3.weight", "5.weight"})],
    )  # fmt: skip
    def test_the_l2_penalty_of_the_kernels_is_in_the_first_loss(self, model, kernels):
        arguments = {"model": model, "model_args": {"width": 8}}
        state = prepared(**arguments).initial_weights()
        # Neither biases nor the weights of batch norms, which are vectors.
        assert kernels == {name for name, tensor in state.items() if tensor.dim() > 1}
        squares = sum(float(state[name].double().square().sum()) for name in kernels)
        options = RangeTestPlan(RangeTestOptions(iterations=10, stop_multiple=None))
        plain = prepared(**arguments).range_test(state, options).loss[0]
        penalised = prepared(**arguments, l2=0.01).range_test(state, options).loss[0]

        assert penalised - plain == pytest.approx(0.01 * squares, rel=1e-5)

    def test_the_penalty_counts_a_shared_kernel_once_and_a_frozen_one_not(self, write_module):
        write_module("penalised_models", PENALISED)
        made = prepared(model="penalised_models:make", model_args={}, l2=1.0, init="own")
        start = made.start(made.initial_weights())
        batch = images, labels = next(iter(start.val_batches))
        excess = start.training_loss(batch) - cross_entropy(start.model(images), labels)

        # 64 × 64 entries of 1/16, in the layer that is called twice and in its twin.
        assert excess.item() == pytest.approx(64 * 64 / 256)

    def test_a_penalty_with_no_kernel_to_act_on_is_refused(self, complains, write_module):
        write_module("penalised_models", PENALISED)
        with complains("l2=0.5", "penalised_models:no_kernel", "weight_decay"):
            prepared(model="penalised_models:no_kernel", model_args={}, l2=0.5)

    def test_every_iteration_is_told(self):
        made, seen = prepared(), []
        made.range_test(
            made.initial_weights(),
            RangeTestPlan(RangeTestOptions(iterations=10)),
            progress=lambda done, total: seen.append((done, total)),
        )

        assert seen == [(i, 10) for i in range(1, 11)]

    def test_a_sample_is_validated_at_every_iteration_and_the_full_set_at_a_few(self):
        made = prepared()
        state, ramp = made.initial_weights(), RangeTestOptions(iterations=40, stop_multiple=None)
        sampled = made.range_test(
            state, RangeTestPlan(ramp, validation=ValidationOptions("sample"))
        )
        full = made.range_test(state, RangeTestPlan(ramp, validation=ValidationOptions("full")))

        at = np.flatnonzero(np.isfinite(sampled.full_val_loss))
        assert at.tolist() == [10, 30]
        assert np.allclose(sampled.full_val_loss[at], full.val_loss[at], rtol=1e-5)
        assert np.array_equal(sampled.loss, full.loss)
        assert np.array_equal(sampled.loss, made.range_test(state, RangeTestPlan(ramp)).loss)
        assert full.val_loss[0] == pytest.approx(made.evaluate(made.start(state))[0], rel=1e-5)


PENALISED = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, x):
        return (x.flatten(1) * self.weight)[:, :10]

def no_kernel():
    return Scale()

def make():
    layer, twin = nn.Linear(64, 64), nn.Linear(64, 64)
    nn.init.constant_(layer.weight, 1 / 16)
    twin.weight = layer.weight
    return nn.Sequential(
        nn.Flatten(), layer, layer, twin, nn.Linear(64, 10).requires_grad_(False)
    )
"""
FACTORIES = """
import torch
from torch import nn

def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def frozen():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)

def empty():
    class Empty(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]
    return Empty()

class Unbuilt(nn.Module):
    def forward(self, x):
        if not hasattr(self, "head"):
            self.head = nn.Linear(64, 10)
        return self.head(x.flatten(1))

def text():
    return "model"

def raises(n=1):
    raise OSError("no weights here")

class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        out = self.head(x.flatten(1))
        return (out, out) if self.training else out

def features():
    split = torch.rand(30, 13), torch.arange(30) % 3
    return split, split

def doubles():
    split = torch.rand(30, 13, dtype=torch.float64), torch.arange(30) % 3
    return split, split

def single():
    split = torch.rand(30, 1, 8, 8), torch.arange(30, dtype=torch.int32) % 3
    return split, split
"""


class TestMistakes:
    @pytest.fixture(autouse=True)
    def module(self, write_module):
        write_module("bench_for_tests", FACTORIES)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"dataset": "digitz"}, ["dataset 'digitz'", "did you mean 'digits'?"]),
            ({"model": "sqeezenet1_1"}, ["model 'sqeezenet1_1'", "did you mean 'squeezenet1_1'?"]),
            ({"batch_size": 1438}, ["batch_size=1438", "1437 training examples", "lower it"]),
            ({"model_args": {"widht": 3}}, ["'mlp'", "widht", "check model_args"]),
            ({"dataset_args": {"n": 3}}, ["'digits'", "check dataset_args"]),
            (
                {"model": "squeezenet1_1", "model_args": {}},
                ["'squeezenet1_1' does not take inputs of shape (1, 8, 8)", "choose another"],
            ),
        ],
    )
    def test_names_and_values_that_cannot_be_used_are_named(self, complains, changes, words):
        with complains(*words):
            prepared(**changes)

    @pytest.mark.parametrize(
        ("factory", "words"),
        [
            ("seven", ["returns (2, 7)", "expected (2, 10)", "number of classes"]),
            ("frozen", ["no trainable parameter", "requires_grad"]),
            ("empty", ["no trainable parameter", "requires_grad"]),
            ("Unbuilt", ["no trainable parameter", "have the constructor make all of them"]),
            ("text", ["returned str", "torch.nn.Module"]),
            ("raises", ["raised OSError: no weights here", "check model_args"]),
            ("nothing", ["no function or class 'nothing'"]),
        ],
    )
    def test_a_model_that_cannot_be_trained_is_named(self, complains, factory, words):
        with complains(f"'bench_for_tests:{factory}'", *words):
            prepared(model=f"bench_for_tests:{factory}", model_args={})

    def test_a_model_whose_output_in_training_is_no_tensor_is_refused_before_any_work(
        self, complains
    ):
        # As torchvision's GoogLeNet and Inception are, which have auxiliary heads in training.
        with complains("'bench_for_tests:Auxiliary'", "tuple"):
            prepared(model="bench_for_tests:Auxiliary", model_args={})

    def test_an_augmentation_of_what_is_no_image_is_refused_before_any_work(self, complains):
        with complains("crop-flip", "(13,)"):
            prepared(dataset="bench_for_tests:features", batch_size=8, augment="crop-flip")

    @pytest.mark.parametrize("device", ["cuda:99", "gpu0", "cpu:banana"])
    def test_a_device_that_is_not_there_is_named(self, complains, device):
        with complains(repr(device), "use auto or cpu"):
            PreparedTask(Task(**SMALL), Runtime(device=device))


@pytest.mark.parametrize("dataset", ["features", "doubles", "single"])
def test_data_of_every_numeric_type_can_be_tested(write_module, dataset):
    write_module("bench_for_tests", FACTORIES)
    made = prepared(dataset=f"bench_for_tests:{dataset}", batch_size=8)

    curve = made.range_test(made.initial_weights(), RangeTestPlan(RangeTestOptions(iterations=10)))
    assert len(curve) == 10


BATCH_NORM = """
import torch
from torch import nn

def data():
    split = torch.rand(9, 13), torch.arange(9) % 3
    return split, (split[0][:1], split[1][:1])

def model():
    return nn.Sequential(nn.Linear(13, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
"""


def test_a_batch_norm_is_fine_with_one_example_to_validate_on(write_module, complains):
    write_module("norm_for_tests", BATCH_NORM)
    changes = {"dataset": "norm_for_tests:data", "model": "norm_for_tests:model", "model_args": {}}

    assert prepared(**changes, batch_size=4).setup().val_batches.size == 1
    with complains("'norm_for_tests:model'", "more than 1 value"):
        prepared(**changes, batch_size=1)


# A model, data, a loss and an optimizer, each with a place where the error is raised.
RAISING = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Odd(BaseException):
    pass

ERRORS = {"exit": SystemExit("enough"), "generator": GeneratorExit("enough"), "odd": Odd("enough")}
PLACES = ["len", "item", "targets", "forward", "state", "loss", "step"]
raised = {}

def maybe(place):
    if place in raised:
        raise ERRORS[raised[place]]

class Data(Dataset):
    classes = ["a", "b"]

    def __len__(self):
        maybe("len")
        return 16

    def __getitem__(self, index):
        maybe("item")
        return torch.ones(4), index % 2

    @property
    def targets(self):
        maybe("targets")
        return [0, 1] * 8

class Model(nn.Linear):
    def forward(self, x):
        maybe("forward")
        return super().forward(x)

    def state_dict(self, *args, **kwargs):
        maybe("state")
        return super().state_dict(*args, **kwargs)

class Optimizer(torch.optim.SGD):
    def step(self, *args):
        maybe("step")
        return super().step(*args)

def data():
    return Data(), Data()

def model():
    return Model(4, 2)

def loss():
    def loss_fn(output, target):
        maybe("loss")
        return nn.functional.cross_entropy(output, target)
    return loss_fn
"""


@pytest.mark.parametrize("place", ["len", "item", "targets", "forward", "state", "loss", "step"])
@pytest.mark.parametrize("error", ["exit", "generator", "odd"])
def test_whatever_code_of_the_user_raises_is_one_line(write_module, complains, place, error):
    write_module("raising_for_tests", RAISING)
    names = {each: f"raising_for_tests:{each}" for each in ("model", "loss")}
    task = Task(
        dataset="raising_for_tests:data", optimizer="raising_for_tests:Optimizer", batch_size=4,
        **names,
    )  # fmt: skip
    made = PreparedTask(task, CPU)
    state = made.initial_weights()
    sys.modules["raising_for_tests"].raised[place] = error
    with complains("raised", "enough", "raising_for_tests.py:"):
        PreparedTask(task, CPU).initial_weights()
    with complains("raised", "enough", "raising_for_tests.py:"):
        made.range_test(state)


def test_an_interruption_of_a_step_stays_one(write_module):
    write_module("interrupted_for_tests", RAISING.replace("SystemExit(", "KeyboardInterrupt("))
    task = Task(
        dataset="interrupted_for_tests:data", loss="interrupted_for_tests:loss", model="mlp",
        batch_size=4,
    )  # fmt: skip
    made = PreparedTask(task, CPU)
    sys.modules["interrupted_for_tests"].raised["loss"] = "exit"
    with pytest.raises(KeyboardInterrupt):
        made.range_test(made.initial_weights())


def test_of_one_class_nothing_can_be_learnt(complains, write_module):
    source = "import torch\ndef make():\n    x = torch.ones(4, 2), torch.zeros(4).long()\n"
    write_module("one_class_for_tests", f"{source}    return x, x\n")
    with complains("'one_class_for_tests:make' has one class", "two or more"):
        PreparedTask(Task(dataset="one_class_for_tests:make", model="mlp"), CPU)
