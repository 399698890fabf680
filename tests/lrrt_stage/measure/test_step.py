from collections import namedtuple
from types import SimpleNamespace

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

    def __init__(self, as_dict=False):
        super().__init__()
        self.layer, self.as_dict = linear(), as_dict

    def forward(self, ids, labels):
        loss = cross_entropy(self.layer(ids), labels)
        return {"loss": loss} if self.as_dict else SimpleNamespace(loss=loss)


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
    "own loss in a dict": (lambda: OwnLoss(as_dict=True), None, {"ids": X, "labels": Y}),
    "own loss by position": (OwnLoss, None, (X, Y)),
}  # fmt: skip


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
        (None, (X,), "pass loss_fn"),
    ],
)
def test_a_batch_that_is_not_understood_says_what_to_pass(loss_fn, batch, message):
    with pytest.raises(LRRTError, match=message):
        batch_loss_of(linear(), loss_fn)(batch)
