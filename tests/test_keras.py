"""A Keras 3 model on its torch backend: to the range test a module as any other."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRange, digest, range_test, seeded
from pipeline import PreparedTask, Task, TrainOptions, train

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3, amsgrad=True),
}


@pytest.fixture(params=OPTIMIZERS)
def make(request, keras_model):
    return lambda: Setting(keras_model.keras, request.param)


class Setting:
    """A Keras model that keeps moving statistics and a seed state, in the midst of training."""

    def __init__(self, keras, optimizer):
        self.keras = keras
        keras.utils.clear_session()
        with seeded(0):
            self.model = keras.Sequential([
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, name="conv"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.ReLU(),
                keras.layers.Dropout(0.2, seed=3, name="seeded"),  # draws from its own variable
                keras.layers.Flatten(),
                keras.layers.Dropout(0.2, name="global"),  # draws from torch's random state
                keras.layers.Dense(3),
            ])  # fmt: skip
            x, y = torch.randn(40, 8, 8, 1), torch.randint(0, 3, (40,))
        device = next(self.model.parameters()).device
        self.data = TensorDataset(x.to(device), y.to(device))
        self.loader = DataLoader(
            self.data, 8, shuffle=True, generator=torch.Generator().manual_seed(1)
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

    def batch_loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x, training=True), y)

    def range_test(self, **options):
        options |= {"batch_loss": self.batch_loss, "iterations": 30}
        return range_test(self.model, self.optimizer, None, self.loader, **options)

    def train(self, epochs=1):
        for _ in range(epochs):
            for batch in self.loader:
                self.optimizer.zero_grad()
                self.batch_loss(batch).backward()
                self.optimizer.step()
        return digest(self.model.state_dict())

    def variables(self):
        """Every variable as Keras itself sees it, those that are not trained as well."""
        return {each.path: array(each) for each in self.model.variables}


def array(variable):
    return variable.value.detach().cpu().numpy().copy()


def same(first, second):
    """Whether two nested optimizer states hold the same values."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_model_and_optimizer_are_left_bit_for_bit_as_found(make):
    with seeded(7):
        setting = make()
        setting.train()
        variables = setting.variables()
        memory = [each.value.data_ptr() for each in setting.model.variables]
        optimizer = copy.deepcopy(setting.optimizer.state_dict())
        random = torch.get_rng_state()
        during = []
        curve = setting.range_test(progress=lambda *_: during.append(setting.variables()))
        after, random_after = setting.variables(), torch.get_rng_state()

    assert len(curve) > 20
    # All of them move in the test: otherwise there is nothing to put back.
    for path, value in variables.items():
        # The dropout without a seed has a state too, which it does not use.
        unused = path.endswith("seed_generator_1/seed_generator_state")
        assert np.array_equal(during[-1][path], value) == unused, path
    (state,) = (path for path in variables if path.endswith("seed_generator/seed_generator_state"))
    # The seed, and how often it was drawn from: 5 batches of training, then once an iteration.
    assert variables[state].tolist() == [3, 5]
    assert during[19][state].tolist() == [3, 25]

    assert variables.keys() == after.keys()
    for path, value in variables.items():
        assert value.dtype == after[path].dtype
        assert value.tobytes() == after[path].tobytes(), path
    assert [each.value.data_ptr() for each in setting.model.variables] == memory
    assert same(setting.optimizer.state_dict(), optimizer)
    assert torch.equal(random_after, random)


def test_training_after_a_range_test_is_bit_equal_to_training_without(make):
    results = []
    for with_test in (False, True):
        with seeded(7):
            setting = make()
            setting.train()
            if with_test:
                setting.range_test()
            results.append(setting.train(epochs=2))
    assert results[0] == results[1]


def test_the_curve_is_the_same_twice_and_its_first_loss_is_keras_own(make):
    with seeded(7):
        setting = make()
        first, second = setting.range_test(), setting.range_test()
    assert np.array_equal(first.loss, second.loss)
    assert len(first) == len(second)
    assert first.loss[0] != first.loss[1]

    with seeded(7):
        setting = make()
        x, y = next(iter(setting.loader))
        output = setting.model(x, training=True)
    loss = setting.keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, output)
    assert first.loss[0] == pytest.approx(loss.item(), rel=1e-6)


def test_the_script_finds_a_range_that_trains(keras_model, monkeypatch):
    monkeypatch.setattr(keras_model, "EPOCHS", 5)  # of ten
    lr_range, accuracy = keras_model.main()
    assert 1e-7 < lr_range.min < lr_range.max < 100
    assert accuracy > 0.9


class TestFactory:
    """What makes of a Keras model one that is called as torch's are."""

    @pytest.fixture
    def model(self, keras_model):
        with seeded(0):
            return keras_model.build(width=4)

    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def test_the_mode_is_torchs(self, model):
        norm = model.net.layers[1]
        kernel = torch.as_tensor(array(model.net.layers[0].kernel))
        # Keras: (height, width, in, out); torch: (out, in, height, width).
        maps = nn.functional.conv2d(self.images, kernel.permute(3, 2, 0, 1), padding=1)

        model.eval()
        with torch.no_grad():
            expected = model.net(self.images.permute(0, 2, 3, 1), training=False)
            assert torch.equal(model(self.images), expected)
        assert array(norm.moving_mean).tolist() == [0.0] * 4

        model.train()
        with torch.no_grad():
            assert not torch.equal(model(self.images), model(self.images))  # dropout
        # Twice from 0 with Keras' momentum of 0.99: mean · 0.01 · (1 + 0.99).
        moved = maps.mean(dim=(0, 2, 3)) * 0.0199
        assert array(norm.moving_mean) == pytest.approx(moved.numpy(), rel=1e-4)

    def test_two_builds_from_one_seed_are_one_model(self, model, keras_model):
        keras_model.network()  # Keras numbers the layers that are made after it
        with seeded(0):
            again = keras_model.build(width=4)
        assert digest(again.state_dict()) == digest(model.state_dict())
        with seeded(1):
            assert digest(keras_model.build(width=4).state_dict()) != digest(model.state_dict())

    def test_it_computes_where_its_inputs_are(self, model, keras_model):
        model.eval()
        with keras_model.keras.device("meta"), torch.no_grad():
            output = model(self.images)
        assert output.device == self.images.device
        with torch.no_grad():
            assert torch.equal(output, model(self.images))

    def test_training_goes_on_from_a_checkpoint_to_the_same_weights(self, keras_model, tmp_path):
        task = Task(
            model="examples.keras_model:build", model_args={"width": 4}, init="own", batch_size=256
        )
        prepared = PreparedTask(task)
        state = prepared.initial_weights()

        def run(checkpoint=None, on_epoch=None):
            options = TrainOptions(epochs=2)
            lr_range = LRRange(0.01, 0.1)
            return train(
                prepared, state, lr_range, options, checkpoint=checkpoint, on_epoch=on_epoch
            )

        def interrupt(training):
            raise KeyboardInterrupt

        whole = run()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "checkpoint.pt", interrupt)
        resumed = run(tmp_path / "checkpoint.pt")
        assert resumed.train_loss == whole.train_loss
        assert digest(resumed.model.state_dict()) == digest(whole.model.state_dict())
