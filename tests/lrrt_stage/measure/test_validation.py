from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import TensorDataset

from lrrt_stage import LRCurve, LRRTError, Validation, range_test, seeded

cross_entropy = nn.functional.cross_entropy


def squares(model):
    """The loss (w x - y)² of the model w x, written out."""
    return lambda batch: (model(batch[0]) - batch[1]).square().mean()


def pairs(*points):
    return tuple(torch.tensor([[float(p[i])] for p in points]) for i in (0, 1))


def classifier(dropout=0.5):
    with seeded(0):
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 3)
        )


def batches(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, 8, generator=generator)
    return list(zip(x, torch.randint(0, 3, (n, 8), generator=generator), strict=True))


def watched_test(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with seeded(1):
        return range_test(model, optimizer, cross_entropy, batches(5), iterations=40, **options)


def test_the_validation_loss_is_taken_at_the_weights_of_the_training_loss():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = range_test(
        model, optimizer, None, [pairs((1, 0))], batch_loss=squares(model),
        # Two batches of unequal size: their mean is over the three examples.
        validation=Validation([pairs((1, 2), (2, 2)), pairs((3, 0))]),
        lr_start=0.01, lr_end=0.1, ramp="linear", iterations=10,
    )  # fmt: skip
    weight, expected = 1.0, []
    for i in range(10):
        expected.append(((weight - 2) ** 2 + (2 * weight - 2) ** 2 + (3 * weight) ** 2) / 3)
        weight -= 0.01 * (i + 1) * 2 * weight
    assert np.allclose(curve.val_loss, expected, rtol=1e-5)
    assert curve.val_loss[0] == pytest.approx(10 / 3)  # (1 + 0 + 9) / 3 at w = 1
    assert curve.full_val_loss is None


class CountingLoss(nn.Module):
    """A loss that changes with every batch it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, target):
        self.seen += 1
        return cross_entropy(output, target) * (1 + 0.01 * self.seen)


def test_a_loss_with_a_state_does_not_see_the_validation():
    curves = []
    for validation in (None, Validation(batches(1, seed=3), batches(3, seed=4))):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"iterations": 20, "validation": validation}
        with seeded(1):
            curves.append(range_test(model, optimizer, CountingLoss(), batches(5), **options))
    assert np.array_equal(curves[0].loss, curves[1].loss)


def test_the_training_losses_are_the_same_with_and_without_it():
    without = watched_test(classifier())
    watched = watched_test(
        classifier(), validation=Validation(batches(1, seed=9), batches(4, seed=9))
    )
    assert np.array_equal(watched.loss, without.loss)
    assert watched.stop == without.stop


def test_validation_is_in_eval_mode_without_gradients_and_leaves_no_trace():
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[2].eval()
    seen = Mock()

    def loss(batch):
        seen(model.training, torch.is_grad_enabled())
        return cross_entropy(model(batch[0]), batch[1])

    watched_test(model, validation=Validation(batches(1), batch_loss=loss))
    assert {each.args for each in seen.mock_calls} == {(False, False)}
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_full_set_is_evaluated_a_few_times_over_the_ramp():
    sample, full = batches(1, seed=9), batches(4, seed=9)
    options = {"lr_end": 1e-3, "stop_multiple": None}
    curve = watched_test(
        classifier(), validation=Validation(sample, full, full_evaluations=4), **options
    )
    assert np.flatnonzero(np.isfinite(curve.full_val_loss)).tolist() == [5, 15, 25, 35]
    whole = watched_test(classifier(), validation=Validation(full), **options)
    evaluated = np.isfinite(curve.full_val_loss)
    assert curve.full_val_loss[evaluated] == pytest.approx(whole.val_loss[evaluated], rel=1e-6)
    first = watched_test(classifier(), validation=Validation(sample), **options)
    assert np.array_equal(curve.val_loss, first.val_loss)


def test_a_curve_with_both_goes_through_its_csv(tmp_path):
    curve = watched_test(
        classifier(), validation=Validation(batches(1), batches(2), full_evaluations=3)
    )
    path = curve.to_csv(tmp_path / "curve.csv")
    assert path.read_text().splitlines()[0] == (
        "iteration,lr,loss,smoothed_loss,val_loss,full_val_loss"
    )
    assert LRCurve.from_csv(path, stop=curve.stop, epochs=curve.epochs) == curve
    part = curve[3:7]
    assert np.array_equal(part.val_loss, curve.val_loss[3:7])
    assert np.array_equal(part.full_val_loss, curve.full_val_loss[3:7], equal_nan=True)


class ReadOnce:
    def __init__(self, batches):
        self.iterator = iter(batches)

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: watched_test(classifier(), validation=Validation([])),
            "no validation batches left",
        ),
        (lambda: Validation(TensorDataset(*batches(1)[0])), "sample is TensorDataset"),
        (lambda: Validation(batches(1), TensorDataset(*batches(1)[0])), "set is TensorDataset"),
        (
            lambda: watched_test(
                classifier(), validation=Validation(batches(1), batch_loss=nn.MSELoss)
            ),
            "the loss is MSELoss",
        ),
        (
            lambda: watched_test(classifier(), validation=Validation(batches(1), [])),
            "no validation batches left",
        ),
        (
            lambda: watched_test(
                classifier(), validation=Validation(batches(1), ReadOnce(batches(2)))
            ),
            "validation batches .* iterated only once; .* new iterator",
        ),
        (
            lambda: watched_test(
                classifier(), validation=Validation(batches(1), batch_loss=lambda _: {"a": 1})
            ),
            "the validation: the loss is dict",
        ),
        (lambda: Validation(batches(1), batches(1), full_evaluations=0), "full_evaluations=0"),
        (
            lambda: watched_test(
                classifier(), validation=Validation([3], batch_loss=lambda _: torch.ones(()))
            ),
            "a batch is int",
        ),
    ],
)
def test_what_cannot_be_validated_on_is_named(make, words):
    with pytest.raises(LRRTError, match=words):
        make()


@dataclass
class Example:
    inputs: torch.Tensor
    target: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: {"inputs": {"x": x}, "y": y},
        lambda x, y: {"all": {"x": x, "y": y}},
        lambda x, y: ([x, x.clone(), x.clone()], y),
        lambda x, y: (list(x), list(y)),
        lambda x, y: (tuple(x), [{"y": each} for each in y]),
        lambda x, y: Example(x, y),
        lambda x, y: SimpleNamespace(x=x, y=y),
        lambda x, y: (pack_sequence(list(x)), y),
        lambda x, y: (x.to_sparse(), y),
    ],
)
def test_batches_of_every_shape_are_weighted_by_their_examples(wrap):
    # The losses 2 and 5, of one and of three examples: 2 · 1/4 + 5 · 3/4.
    losses = {1: 2.0, 3: 5.0}
    sizes = iter([1, 3] * 10)
    model = nn.Linear(2, 1)
    curve = range_test(
        model, torch.optim.SGD(model.parameters(), lr=0.1), None, [torch.ones(1, 2)],
        batch_loss=lambda batch: model(batch).mean(), iterations=10,
        validation=Validation(
            [wrap(torch.ones(n, 2), torch.ones(n, 1)) for n in (1, 3)],
            batch_loss=lambda batch: torch.tensor(losses[next(sizes)]),
        ),
    )  # fmt: skip
    assert curve.val_loss[0] == 4.25


@pytest.mark.parametrize("full", [None, batches(2, seed=3)])
def test_a_model_that_changes_its_input_in_place_gets_copies_of_the_sample(full):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x.mul_(1.5) if not torch.is_grad_enabled() else x)

    sample = batches(2, seed=5)
    before = [x.clone() for x, _ in sample]
    model = InPlace()
    curve = range_test(
        model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy, batches(4),
        validation=Validation(sample, full), iterations=10, lr_start=1e-12, lr_end=1e-11,
    )  # fmt: skip
    assert np.ptp(curve.val_loss) < 1e-5
    assert all(torch.equal(x, found) for x, (found, _) in zip(before, sample, strict=True))
