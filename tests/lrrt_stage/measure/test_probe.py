"""The probe: a fixed batch that is evaluated now and then, and changes nothing."""

import copy
import weakref
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import LRRTError, RangeTestOptions, Validation, range_test
from lrrt_stage.measure.evaluations import Probe, probe_iterations


@pytest.fixture
def start():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1)
    )
    x = torch.randn(64, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probe = (torch.randn(8, 4), torch.randn(8, 1))
    return model, optimizer, loader, probe


def test_the_curve_is_the_same_with_it_and_all_is_left_as_it_was(start):
    model, optimizer, loader, probe = start
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    without = range_test(model, optimizer, mse_loss, loader, iterations=40)
    torch.manual_seed(1)
    probed = range_test(model, optimizer, mse_loss, loader, iterations=40, probe=probe)
    assert np.array_equal(without.loss, probed.loss)
    assert without.probe_loss is None
    assert probed.probe_loss.shape == probed.loss.shape
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_no_batch_that_was_used_is_held(start):
    model, optimizer, _, probe = start
    made, left = [], []

    class Fresh:
        def __iter__(self):
            for seed in range(20):
                inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
                made.append(weakref.ref(inputs))
                yield inputs, inputs[:, :1]

    def count(done, total):
        left.append(sum(each() is not None for each in made))

    range_test(model, optimizer, mse_loss, Fresh(), probe=probe, progress=count, iterations=15)
    assert set(left) == {1}


class TestRhythm:
    """How often the probe is evaluated."""

    @staticmethod
    def of(iterations: int, probe: int = 64, batch: int = 64, **options) -> set[int]:
        made = RangeTestOptions(**options)
        return probe_iterations(made, iterations, torch.zeros(probe), torch.zeros(batch))

    def test_the_more_often_the_closer_the_rise(self):
        expected = [*range(0, 40, 6), *range(40, 60, 3), *range(60, 100, 2), 99]
        assert sorted(self.of(100)) == expected

    def test_at_last_since_the_loss_may_rise_there(self):
        assert 100 in self.of(101)
        assert 29 in self.of(30, probe_every=2)

    def test_rarer_with_small_batches_whose_steps_are_cheap(self):
        assert len(self.of(1000, batch=26)) == len(self.of(1000, batch=256)) == 335
        assert len(self.of(1000, batch=25)) == len(self.of(1000, batch=1)) == 168
        late = [*range(60, 80, 3), *range(80, 100, 5), 99]
        assert sorted(self.of(100, batch=16)) == [0, 20, *range(40, 60, 5), *late]

    def test_batches_that_are_accumulated_count_together(self):
        made = RangeTestOptions(), 1000, torch.zeros(64), torch.zeros(8)
        assert probe_iterations(*made, accumulate=8) == self.of(1000)

    def test_more_often_in_a_short_ramp(self):
        assert self.of(60) == {*range(60)}
        assert self.of(80) == {*range(0, 80, 2), 79}

    def test_no_more_in_a_long_ramp(self):
        numbers = [1_000, 1_001, 1_999, 2_000, 10_000, 1_000_000]
        assert {len(self.of(number)) for number in numbers} <= {335, 336}
        assert sorted(self.of(2_000))[:3] == [0, 12, 24]

    def test_always_in_a_ramp_whose_learning_rates_are_large_at_once(self):
        assert self.of(200, ramp="linear") == {*range(200)}

    def test_a_batch_of_unknown_length_is_taken_as_a_usual_one(self):
        found = probe_iterations(RangeTestOptions(), 100, object(), object())
        assert found == self.of(100)

    def test_the_batches_of_all_ranks_count(self, monkeypatch):
        """As with a process alone that has the whole batch."""
        small = self.of(1000, batch=8)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(8))
        assert small != self.of(1000, batch=8) == self.of(1000, batch=64)

    def test_the_number_that_is_given_counts(self):
        assert self.of(100, batch=1, probe_every=1) == {*range(100)}

    @pytest.mark.parametrize(("iterations", "most"), [(10, 1), (30, 2), (100, 6), ("epoch", 6)])
    def test_so_few_that_the_rise_is_missed_are_refused(self, iterations, most):
        assert RangeTestOptions(iterations=iterations, probe_every=most).probe_every == most
        with pytest.raises(LRRTError, match=f"probe_every={most + 1} leaves.* give {most} at most"):
            RangeTestOptions(iterations=iterations, probe_every=most + 1)

    def test_where_it_is_not_evaluated_the_curve_has_no_number(self, start):
        model, optimizer, loader, probe = start
        curves = [
            range_test(model, optimizer, mse_loss, loader, probe=probe, probe_every=every)
            for every in (1, 4)
        ]
        each, some = curves
        evaluated = ~np.isnan(some.probe_loss)
        assert np.flatnonzero(evaluated).tolist() == [*range(0, len(some), 4)]
        # As for the validation, the model is restored: nothing depends on how often.
        assert np.array_equal(some.loss, each.loss)
        assert np.array_equal(some.probe_loss[evaluated], each.probe_loss[evaluated])
        assert some.probed == each[evaluated]

    def test_a_loss_that_is_no_number_is_infinite(self, start):
        model, _, _, probe = start
        evaluate = Probe(model, probe, lambda batch: model(batch[0]).sum() * torch.nan)
        assert evaluate()["probe_loss"].item() == np.inf

    def test_gradients_are_forgotten_once_a_step_and_before_it_is_evaluated(
        self, start, monkeypatch
    ):
        model, optimizer, loader, probe = start
        calls, held = [], []
        zero_grad, evaluate = optimizer.zero_grad, Probe.__call__

        def recorded(self, iteration):
            held.extend(each.grad for each in model.parameters())
            return evaluate(self, iteration)

        optimizer.zero_grad = lambda: (calls.append(1), zero_grad())
        monkeypatch.setattr(Probe, "__call__", recorded)
        more = {"probe": probe, "iterations": 20, "stop_multiple": None}
        range_test(model, optimizer, mse_loss, loader, **more)
        assert len(calls) == 20
        assert held == [None] * 20 * len([*model.parameters()])


def test_its_loss_is_that_at_the_weights_before_the_step(start):
    model, optimizer, loader, probe = start
    evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
    first = float(evaluate()["probe_loss"])
    curve = range_test(model, optimizer, mse_loss, loader, iterations=40, probe=probe)
    assert curve.probe_loss[0] == pytest.approx(first)


def test_batch_norm_takes_the_probes_own_statistics_and_dropout_is_off(start):
    model, _, _, (x, y) = start
    with torch.no_grad():
        hidden = model[0](x)
        normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        by_hand = mse_loss(model[4](normal.relu()), y)
    evaluate = Probe(model, (x, y), lambda batch: mse_loss(model(batch[0]), batch[1]))
    assert float(evaluate()["probe_loss"]) == pytest.approx(float(by_hand), rel=1e-5)
    assert model[1].running_mean.equal(torch.zeros(16))
    assert int(model[1].num_batches_tracked) == 0


def test_statistics_are_restored_also_after_an_error(start):
    model, _, _, probe = start

    def fails(batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Probe(model, probe, fails)()
    assert model[1].running_mean is not None


def test_a_probe_and_a_validation_go_together(start):
    model, optimizer, loader, probe = start
    validation = Validation([probe], [probe], full_evaluations=2)
    curve = range_test(
        model, optimizer, mse_loss, loader, iterations=40, probe=probe, validation=validation
    )
    assert np.isfinite(curve.full_val_loss).sum() == 2
    # In evaluation mode the running statistics count.
    assert not np.array_equal(curve.probe_loss, curve.val_loss)


def test_a_probe_that_is_no_batch_is_refused_before_the_first_step(start):
    model, optimizer, loader, _ = start
    with pytest.raises(LRRTError, match="batch is str"):
        range_test(model, optimizer, mse_loss, loader, iterations=40, probe="validation")


class Sampling(nn.Module):
    """Draws at random in evaluation mode too, and changes its input in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        x.mul_(0.9)
        return self.layer(x + 0.1 * torch.randn_like(x))


class LossWithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output, target):
        self.calls += 1
        return (self.dropout(output - target) ** 2).mean() + 0.01 * self.calls


def test_training_is_the_same_with_a_model_and_a_loss_that_draw_and_count():
    curves = []
    x = torch.ones(8, 4)
    for probe in (None, (x, torch.ones(8, 1))):
        torch.manual_seed(0)
        model = Sampling()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(5)]
        curves.append(
            range_test(model, optimizer, LossWithState(), batches, iterations=30, probe=probe)
        )
    assert np.array_equal(curves[0].loss, curves[1].loss)
    assert x.equal(torch.ones(8, 4))


def test_what_the_model_holds_in_a_list_keeps_its_mode_in_every_evaluation(start):
    class WithList(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.others = nn.Linear(4, 1), [nn.Linear(4, 1)]

        def forward(self, x):
            seen(torch.is_grad_enabled(), self.training, self.others[0].training)
            return self.layer(x) + self.others[0](x)

    _, _, loader, probe = start
    model, seen = WithList(), Mock()  # nothing is restored in objects of Python's own packages
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    range_test(model, optimizer, mse_loss, loader, iterations=10, probe=probe)
    assert {each.args for each in seen.mock_calls} == {(True, True, True), (False, False, True)}


def test_one_image_is_a_probe_for_norm_layers_without_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    image = torch.randn(1, 1, 8, 8)
    probe = Probe(model, (image, image), lambda batch: model(batch[0]).square().mean())
    loss = probe()["probe_loss"]
    assert loss.item() == pytest.approx(1, abs=1e-3)


class Ghost(nn.BatchNorm1d):
    """Normalises each half of the batch, and reads the running statistics itself."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        halves = [(x - x.mean(0)) / x.std(0, correction=0).add(1e-5) for x in x.chunk(2)]
        self.running_mean.lerp_(x.mean(0), self.momentum)
        return torch.cat(halves) * self.weight + self.bias + 0 * self.running_mean


def test_a_norm_layer_with_a_forward_of_its_own_normalises_over_the_probe():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Ghost(3), nn.Linear(3, 1))
    probe = (torch.randn(8, 4), torch.randn(8, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = mse_loss(copy.deepcopy(model)(probe[0]), probe[1])
        evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
        evaluated = evaluate()["probe_loss"]
    assert evaluated.item() == expected.item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_frozen_norm_layer_is_probed_as_it_is_trained():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    torch.manual_seed(0)
    model = Frozen(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    batch = (torch.randn(16, 4), torch.randn(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = range_test(model, optimizer, mse_loss, [batch], iterations=20, probe=batch)
    assert curve.probe_loss[0] == pytest.approx(curve.loss[0])


def test_instance_norm_with_running_statistics_can_be_probed():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True))
    batch = (torch.randn(4, 1, 8), torch.randn(4, 2, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.Module.requires_grad_(model, True)
    curve = range_test(model, optimizer, mse_loss, [batch], iterations=20, probe=batch)
    assert np.isfinite(curve.probe_loss[0])


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ((torch.randn(1, 4), torch.randn(1, 1)), "the probe has one example"),
        ((torch.full((8, 4), torch.nan), torch.randn(8, 1)), "the loss of the probe is not finite"),
    ],
)
def test_a_probe_that_cannot_be_used_is_named(start, probe, words):
    model, optimizer, loader, _ = start
    with pytest.raises(LRRTError, match=words):
        range_test(model, optimizer, mse_loss, loader, iterations=40, probe=probe)


def test_a_loss_that_is_no_number_is_named_as_without_a_probe(start):
    model, optimizer, loader, probe = start
    with pytest.raises(LRRTError, match=r"the probe: the loss is Tensor of torch.float32 \[8, 1\]"):
        range_test(
            model, optimizer, nn.MSELoss(reduction="none"), loader, iterations=40, probe=probe
        )


class Detector(nn.Module):
    """Returns losses by name in training alone, as torchvision's detectors do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, y):
        error = self.layer(x) - y
        if self.training:
            return {"box": error.square().mean(), "class": error.abs().mean()}
        return [{"boxes": each} for each in error]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("evaluated", ["probe", "validation"])
def test_a_model_without_a_loss_in_evaluation_mode_is_told_what_to_do(start, evaluated, own):
    _, _, loader, probe = start
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch_loss = (lambda batch: sum(model(*batch).values())) if own else None
    given = {"batch_loss": batch_loss, "iterations": 10}
    assert len(range_test(model, optimizer, None, loader, **given)) > 0
    given[evaluated] = probe if evaluated == "probe" else Validation([probe])
    message = f"^the {evaluated}: .* batch_loss that works in evaluation mode.* or leave out"
    with pytest.raises(LRRTError, match=message) as error:
        range_test(model, optimizer, None, loader, **given)
    assert "\n" not in str(error.value)


def test_a_probe_with_a_graph_is_detached(start):
    model, optimizer, loader, (x, y) = start
    plain = range_test(model, optimizer, mse_loss, loader, iterations=10, probe=(x, y))
    attached = (x * torch.ones(1, requires_grad=True), y)
    curve = range_test(model, optimizer, mse_loss, loader, iterations=10, probe=attached)
    assert np.array_equal(curve.probe_loss, plain.probe_loss)
    assert attached[0].requires_grad


def test_a_probe_may_hold_a_list_of_examples(start):
    model, optimizer, loader, (x, y) = start

    def stacked(batch):
        return mse_loss(model(torch.stack(list(batch[0]))), torch.stack(list(batch[1])))

    curve = range_test(
        model, optimizer, None, loader, batch_loss=stacked, iterations=10, probe=(list(x), list(y))
    )
    plain = range_test(model, optimizer, mse_loss, loader, iterations=10, probe=(x, y))
    assert curve.probe_loss == pytest.approx(plain.probe_loss)


def test_a_probe_that_cannot_be_copied_is_named(start):
    model, optimizer, loader, (x, y) = start
    with pytest.raises(LRRTError, match="the probe: .* cannot be copied") as error:
        range_test(model, optimizer, mse_loss, loader, probe=(x, y, (i for i in range(3))))
    assert "\n" not in str(error.value)


class Noisy(nn.Linear):
    """Adds noise, by a helper object that is no module, in training alone."""

    def __init__(self):
        super().__init__(4, 1)
        self.helper = SimpleNamespace(training=True)

    def train(self, mode=True):
        self.helper.training = mode
        return super().train(mode)

    def forward(self, x):
        out = super().forward(x)
        return out + torch.rand_like(out) if self.helper.training else out


class Growing(nn.Sequential):
    """Gets a dropout in its fourth batch of training."""

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.Linear(16, 1))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 4 and len(self) == 2:
            self.insert(1, nn.Dropout(0.5))
        return super().forward(x)


@pytest.mark.parametrize("kind", [Noisy, Growing])
def test_what_an_evaluation_switches_is_on_again_in_the_step(start, kind):
    _, _, loader, probe = start
    losses = []
    for given in (None, probe):
        torch.manual_seed(0)
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(1)
        curve = range_test(model, optimizer, mse_loss, loader, iterations=20, probe=given)
        losses.append(curve.loss)
    assert np.array_equal(*losses)


class TestBaseline:
    """The loss with the mean output of the probe in place of each output."""

    def test_it_is_the_loss_of_the_mean_output(self):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))
        with torch.no_grad():
            expected = mse_loss(model(probe[0]).mean().expand(8, 1), probe[1])
        evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
        assert evaluate()["probe_baseline"].item() == pytest.approx(expected.item())

    def test_a_curve_has_it_wherever_the_probe_is_evaluated(self, start):
        model, optimizer, loader, probe = start
        curve = range_test(model, optimizer, mse_loss, loader, probe=probe, probe_every=3)
        assert curve.probe_baseline.shape == curve.loss.shape
        assert np.isfinite(curve.probed.probe_baseline).all()
        assert np.isnan(curve.probe_baseline).sum() == len(curve) - len(curve.probed) > 0
        assert "forward" not in vars(model)

    @pytest.mark.parametrize(
        "batch_loss",
        [
            lambda model, x, y: mse_loss(model(x) + model(x), y),  # it is not clear which output
            lambda model, x, y: mse_loss(model.weight.sum() * x[:, :1], y),
            lambda model, x, y: mse_loss(model(x[:1]).expand(8, 1), y),  # no row for each example
            lambda model, x, y: mse_loss(model(x).squeeze(1)[torch.arange(8)], y[:, 0]).reshape(1),
        ],
    )
    def test_it_is_there_only_where_the_model_returns_a_row_for_each_example(self, batch_loss):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))
        evaluate = Probe(model, probe, lambda batch: batch_loss(model, *batch))
        found = evaluate()
        usual = "squeeze" in batch_loss.__code__.co_names
        assert torch.isnan(found["probe_baseline"]).item() != usual
        assert torch.isfinite(found["probe_loss"]).item()

    def test_a_curve_without_it_has_no_such_series(self):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        curve = range_test(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            None,
            [torch.randn(8, 4)],
            batch_loss=lambda x: (model(x) - model(x.flip(0))).square().mean(),
            probe=torch.randn(8, 4),
            iterations=20,
        )
        assert curve.probe_loss is not None
        assert curve.probe_baseline is None

    def test_a_forward_of_the_instance_stays(self):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))
        own = model.forward
        model.forward = lambda x: own(x) + 1
        kept = model.forward
        evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
        assert torch.isfinite(evaluate()["probe_baseline"]).item()
        assert model.forward is kept

    def test_a_loss_that_refuses_the_mean_output_costs_nothing_else(self):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))

        def loss(output, target):
            if output.unique().numel() == 1:
                raise RuntimeError("all outputs are equal")
            return mse_loss(output, target)

        evaluate = Probe(model, probe, lambda batch: loss(model(batch[0]), batch[1]))
        found = evaluate()
        assert torch.isnan(found["probe_baseline"]).item()
        assert torch.isfinite(found["probe_loss"]).item()
        assert "forward" not in vars(model)

    def test_a_loss_that_changes_the_output_does_so_once(self):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))

        def loss(output, target):
            output *= 1.5
            return mse_loss(output, target)

        with torch.no_grad():
            expected = mse_loss(1.5 * model(probe[0]).mean().expand(8, 1), probe[1])
        evaluate = Probe(model, probe, lambda batch: loss(model(batch[0]), batch[1]))
        assert evaluate()["probe_baseline"].item() == pytest.approx(expected.item())

    def test_a_hook_that_changes_the_output_does_so_once(self):
        torch.manual_seed(0)
        model, probe = nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))
        with torch.no_grad():
            expected = mse_loss(2 * model(probe[0]).mean().expand(8, 1), probe[1])
        model.register_forward_hook(lambda module, inputs, output: 2 * output)
        evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
        assert evaluate()["probe_baseline"].item() == pytest.approx(expected.item())

    def test_a_scripted_model_has_none(self):
        model, probe = torch.jit.script(nn.Linear(4, 1)), (torch.randn(8, 4), torch.randn(8, 1))
        evaluate = Probe(model, probe, lambda batch: mse_loss(model(batch[0]), batch[1]))
        assert torch.isnan(evaluate()["probe_baseline"]).item()
