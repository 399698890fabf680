from collections import UserDict, defaultdict, namedtuple
from functools import partial
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import nn

from lrrt_stage import LRRTError, range_test, seeded
from lrrt_stage.measure.step import batch_loss_of

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
cross_entropy = nn.functional.cross_entropy


def linear():
    with seeded(0):
        return nn.Linear(4, 3)


class Keywords(nn.Module):
    """Two named inputs, as language models have."""

    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, ids, mask):
        return self.layer(ids * mask)


class OwnLoss(nn.Module):
    """A model whose output carries its loss, as Hugging Face's do."""

    def __init__(self, output=lambda loss, logits: SimpleNamespace(loss=loss)):
        super().__init__()
        self.layer, self.output = linear(), output

    def forward(self, ids, labels):
        logits = self.layer(ids)
        return self.output(cross_entropy(logits, labels), logits)


OUTPUTS = {
    "object": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "dict": lambda loss, logits: {"loss": loss, "logits": logits},
    "other mapping": lambda loss, logits: UserDict(loss=loss, logits=logits),
    "first of a tuple": lambda loss, logits: (loss, logits),
    "alone": lambda loss, logits: loss,
    "of shape [1]": lambda loss, logits: {"loss": loss.reshape(1)},
    "by name": lambda loss, logits: {"classes": loss * 0.75, "boxes": loss * 0.25},
}


Pair = namedtuple("Pair", "x y")
EXPECTED = cross_entropy(linear()(X), Y).item()
SHAPES = {
    "tuple": (linear, cross_entropy, (X, Y)),
    "list": (linear, cross_entropy, [X, Y]),
    "named tuple": (linear, cross_entropy, Pair(X, Y)),
    "dict of one input": (linear, cross_entropy, {"image": X, "label": Y}),
    "dict of two inputs": (
        Keywords, cross_entropy, {"ids": X, "mask": torch.ones_like(X), "targets": Y},
    ),
    "three in a tuple": (Keywords, cross_entropy, (X, torch.ones_like(X), Y)),
    "own loss": (OwnLoss, None, {"ids": X, "labels": Y}),
    "own loss by position": (OwnLoss, None, (X, Y)),
    "defaultdict": (linear, cross_entropy, defaultdict(list, x=X, y=Y)),
    "read-only mapping": (linear, cross_entropy, MappingProxyType({"x": X, "y": Y})),
    **{
        f"own loss, {name}": (partial(OwnLoss, output), None, (X, Y))
        for name, output in OUTPUTS.items()
    },
}  # fmt: skip


def test_a_loss_that_is_complex_is_refused():
    model = nn.Linear(2, 1, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [torch.ones(3, 2, dtype=torch.complex64)]
    with pytest.raises(LRRTError, match="the loss is Tensor of torch.complex64.*one real number"):
        range_test(model, optimizer, None, batches, batch_loss=lambda batch: model(batch).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_every_shape_give_the_same_loss(shape):
    make, loss_fn, batch = SHAPES[shape]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = range_test(model, optimizer, loss_fn, [batch], lr_end=1e-3, iterations=10)
    assert curve.loss[0] == EXPECTED


def test_a_function_from_batch_to_loss_covers_the_rest():
    model = linear()
    curve = range_test(
        model, torch.optim.SGD(model.parameters(), lr=0.1), None, [SimpleNamespace(a=X, b=Y)],
        batch_loss=lambda batch: cross_entropy(model(batch.a), batch.b), lr_end=1e-3, iterations=10,
    )  # fmt: skip
    assert curve.loss[0] == EXPECTED


@pytest.mark.parametrize(
    ("loss_fn", "batch", "message"),
    [
        (cross_entropy, {"image": X, "class": Y}, "'class', 'image'"),
        (cross_entropy, X, "a batch is Tensor"),
        (cross_entropy, (X,), "a batch is tuple"),
        (cross_entropy, {0: X, "x": Y}, "no target among the batch's keys"),
        (cross_entropy, None, "a batch is None"),
        (cross_entropy, (X, Y, torch.ones(6)), "Linear.forward.. takes 2 .* but 3 were given"),
        (cross_entropy, {"x": X, "path": ["a"] * 6, "y": Y}, "unexpected keyword argument"),
        (cross_entropy, {0: X, 1: X, "y": Y}, "keywords must be strings"),
        (cross_entropy, ((X, X), Y), "the model does not take tuple of .tuple of .Tensor"),
        (cross_entropy, (["a"] * 6, Y), "the model does not take tuple of .list of .str"),
        (cross_entropy, (X, ["a"] * 6), "loss_fn does not take"),
        (lambda output: output.mean(), (X, Y), "loss_fn does not take"),
        (None, (X,), "pass loss_fn"),
        (None, (X, Y), "pass loss_fn, or batch_loss"),
        (None, X, "pass loss_fn, or batch_loss"),
    ],
)
def test_a_batch_that_is_not_understood_says_what_to_pass(loss_fn, batch, message):
    with pytest.raises(LRRTError, match=message) as error:
        batch_loss_of(linear(), loss_fn)(batch)
    assert "batch_loss" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "output",
    [
        lambda loss, logits: None,
        lambda loss, logits: {},
        lambda loss, logits: (logits, loss),
        lambda loss, logits: {"classes": loss, "logits": logits},
        lambda loss, logits: {"classes": loss, "accuracy": loss.detach()},
        lambda loss, logits: SimpleNamespace(loss=None),
        lambda loss, logits: loss.item(),
    ],
)
def test_an_output_without_a_loss_says_what_to_pass(output):
    with pytest.raises(LRRTError, match="without a loss: pass loss_fn, or batch_loss"):
        batch_loss_of(OwnLoss(output), None)((X, Y))


@pytest.mark.parametrize("loss", [{"a": torch.ones(())}, (torch.ones(()), 1), 2.0, None])
def test_a_loss_that_is_no_tensor_says_what_to_pass(loss):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LRRTError, match=r"the loss is .*, or pass batch_loss"):
        range_test(model, optimizer, lambda output, target: loss, [(X, Y)])


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, IndexError, RuntimeError])
def test_an_error_of_the_users_own_code_keeps_its_type(error):
    def fail(*inputs):
        raise error("mine")

    with pytest.raises(error, match="mine"):
        batch_loss_of(linear(), fail)((X, Y))
    model = OwnLoss(fail)
    with pytest.raises(error, match="mine"):
        batch_loss_of(model, None)((X, Y))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match="mine"):
        range_test(model, optimizer, None, [SimpleNamespace(x=X)], batch_loss=fail)


def test_a_loss_of_two_arguments_in_place_of_one_of_a_batch_is_named():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LRRTError, match="batch_loss does not take"):
        range_test(model, optimizer, None, [(X, Y)], batch_loss=cross_entropy)
