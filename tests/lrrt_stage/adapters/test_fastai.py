"""The range test on fastai's Learner, beside its own training."""

import copy
import warnings
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from lrrt_stage import LRRTError, digest, range_test, seeded, suggest
from lrrt_stage.adapters import from_fastai
from lrrt_stage.state.weights import state_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    learner = pytest.importorskip(
        "fastai.learner", reason="no fastai here: pip install 'lrrt-stage[fastai]'"
    )
    from fastai import optimizer as optimizers
    from fastai.callback.core import Callback
    from fastai.callback.mixup import MixUp
    from fastai.callback.schedule import Learner  # which brings fit_one_cycle
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.losses import CrossEntropyLossFlat

IMAGES, LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(IMAGES / 16, dtype=torch.float32), torch.tensor(LABELS)

OPTIMIZERS = {
    "Adam": optimizers.Adam,
    "SGD": partial(optimizers.SGD, mom=0.9),
    "Lamb": optimizers.Lamb,
    "torch's AdamW": partial(optimizers.OptimWrapper, opt=torch.optim.AdamW),
}


class Keeping(Callback):
    """Keeps the losses of the training's batches."""

    order = 100

    def __init__(self):
        self.kept = []

    def after_pred(self):
        if self.training:
            loss = self.learn.loss_func(self.learn.pred, *self.learn.yb)
            self.kept.append(loss.item())


def halves(model):
    return [list(model[:2].parameters()), list(model[2:].parameters())]


def make(optimizer="Adam", valid=True, dropout=0.0, examples=1400, **options):
    with seeded(0):
        train = DataLoader(TensorDataset(X[:examples], Y[:examples]), bs=64, shuffle=True)
        held = [DataLoader(TensorDataset(X[1400:1600], Y[1400:1600]), bs=64)] if valid else []
        model = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
        )
        options = {"splitter": halves, "wd": 0.01} | options
        return Learner(
            DataLoaders(train, *held), model, CrossEntropyLossFlat(),
            opt_func=OPTIMIZERS.get(optimizer, optimizer), **options,
        )  # fmt: skip


def train(learn):
    with seeded(1), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 0.01)
    return digest(state_of(learn.model))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learner_trains_bit_equally_with_and_without_a_test(optimizer):
    results = []
    for with_test in (False, True):
        learn = make(optimizer, dropout=0.2, examples=256)
        for _ in range(2):  # before and between trainings
            if with_test:
                assert len(range_test(**from_fastai(learn), iterations=20)) > 10
            results.append(train(learn))
    assert results[:2] == results[2:]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_steps_and_losses_are_those_of_fastais_own_training(optimizer):
    learn = make(optimizer)
    # The learning rate of the test's first steps is so low that it is that of no training.
    curve = range_test(
        **from_fastai(learn), iterations=10, lr_start=0.01, lr_end=0.0100001, stop_multiple=None
    )
    losses = Keeping()
    with seeded(0), learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01, cbs=losses)
    assert losses.kept[0] == curve.loss[0]
    assert losses.kept[:8] == pytest.approx(curve.loss[:8].tolist(), rel=1e-3)


def test_learner_loaders_and_random_states_are_left_as_found():
    learn = make()
    with seeded(0):
        before, weights = dict(vars(learn)), copy.deepcopy(learn.model.state_dict())
        generators = [loader.rng for loader in learn.dls.loaders]
        states = [generator.getstate() for generator in generators]
        random = torch.get_rng_state()
        curve = range_test(**from_fastai(learn), iterations=30)
        assert torch.equal(torch.get_rng_state(), random)
    assert len(curve.probe_loss) == len(curve) > 20
    assert vars(learn) == before
    assert learn.opt is None
    assert all(
        torch.equal(value, weights[name]) for name, value in learn.model.state_dict().items()
    )
    assert [loader.rng for loader in learn.dls.loaders] == generators
    assert [generator.getstate() for generator in generators] == states


def test_an_optimizer_in_use_keeps_state_and_rates():
    learn = make(examples=256)
    train(learn)
    hypers = copy.deepcopy(list(learn.opt.hypers))
    state = [{**entries} for entries in learn.opt.state.values()]
    tensors = [entries["grad_avg"].clone() for entries in state]
    first, second = (range_test(**from_fastai(learn), iterations=20) for _ in range(2))
    assert list(learn.opt.hypers) == hypers
    assert list(learn.opt.state.values()) == state
    assert all(torch.equal(a["grad_avg"], b) for a, b in zip(state, tensors, strict=True))
    assert first == second


READY = {
    # fastai cannot make torch's optimizers with a slice.
    "as made": lambda learn: learn.opt_func is optimizers.Adam or learn.create_opt(),
    "frozen": lambda learn: learn.freeze(),
    "unfrozen": lambda learn: (learn.freeze(), learn.unfreeze()),
    "trained at equal rates": train,
}


@pytest.mark.parametrize("optimizer", ["Adam", "torch's AdamW"])
@pytest.mark.parametrize("lr", [slice(1e-4, 1e-2), slice(1e-2), 1e-2])
@pytest.mark.parametrize("ready", READY)
def test_groups_have_the_ratio_and_the_decay_that_fit_sets(ready, lr, optimizer):
    learn = make(optimizer, examples=128)
    READY[ready](learn)
    learn.lr, learn.wd = lr, 0.03
    arguments = from_fastai(learn)
    rates = []
    groups = arguments["optimizer"].param_groups
    range_test(
        **arguments, iterations=10, lr_end=1.0,
        progress=lambda *_: rates.append([group["lr"] for group in groups]),
    )  # fmt: skip
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert rates[-1] == pytest.approx([hypers["lr"] / 1e-2 for hypers in learn.opt.hypers])
    decay = "wd" if optimizer == "Adam" else "weight_decay"
    assert [group[decay] for group in groups] == [0.03, 0.03]


def test_norms_and_biases_are_exempt_from_decay_as_in_fit():
    learn = make(wd=1.0)
    bias = learn.model[4].bias
    optimizer = from_fastai(learn)["optimizer"]
    assert optimizer.state[bias]["do_wd"] is False
    assert "do_wd" not in optimizer.state[learn.model[4].weight]


def test_a_frozen_learner_is_tested_on_what_it_trains():
    learn = make()
    learn.freeze()
    frozen, head = learn.model[0].weight, learn.model[4].weight
    seen = []
    range_test(
        **from_fastai(learn), iterations=10,
        progress=lambda *_: seen.append((frozen.grad is None, head.grad is None)),
    )  # fmt: skip
    assert seen[-1] == (True, False)
    assert not frozen.requires_grad


def test_the_curve_has_a_suggestion_that_trains():
    learn = make()
    lr_range = suggest(range_test(**from_fastai(learn)))
    losses = Keeping()
    with seeded(0), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, lr_range.max, cbs=losses)
    assert sum(losses.kept[-3:]) / 3 < 0.25 * losses.kept[0]


def test_without_validation_data_there_is_no_probe():
    assert from_fastai(make(valid=False))["probe"] is None
    learn = make()
    learn.dls.loaders[1] = DataLoader(TensorDataset(X[:0], Y[:0]), bs=64)
    assert from_fastai(learn)["probe"] is None


def test_callbacks_that_change_a_step_are_named():
    with pytest.warns(UserWarning, match="MixUp") as caught:
        from_fastai(make(cbs=MixUp()))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_fastai(make())


def test_a_ready_optimizer_of_torch_is_used_and_kept():
    learn = make()
    ready = torch.optim.SGD(learn.model.parameters(), lr=0.1, momentum=0.9)
    learn.opt_func = optimizers.OptimWrapper(opt=ready)
    arguments = from_fastai(learn)
    assert type(arguments["optimizer"]) is torch.optim.SGD
    range_test(**arguments, iterations=10)
    assert ready.param_groups[0]["lr"] == 0.1
    assert not ready.state


def with_optimizer():
    learn = make()
    learn.opt = object()
    return learn


WRONG = {
    "its class": (
        lambda: from_fastai(Learner),
        "the class Learner was given",
    ),
    "its model": (lambda: from_fastai(nn.Linear(1, 1)), "Linear was given"),
    "Lookahead": (lambda: from_fastai(make(optimizers.ranger)), "Lookahead"),
    "another optimizer": (lambda: from_fastai(with_optimizer()), "is object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_tested_is_refused_in_one_line(what):
    call, message = WRONG[what]
    with pytest.raises(LRRTError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
