"""State of every kind, wherever a model, a loss or an optimizer keeps it."""

import dataclasses
import itertools
import queue
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lrrt_stage import LRRTError, Validation, range_test, seeded
from lrrt_stage.state.parts import known_to_functions, parts_of
from lrrt_stage.state.snapshot import Snapshot


class WithSlots:
    __slots__ = ("__hidden", "count", "late", "seen")

    def __init__(self):
        self.count, self.seen, self.__hidden = 0, [torch.zeros(2)], 1

    def use(self):
        self.count += 1
        self.seen[0] += 1
        self.seen.append(1)
        self.__hidden *= 1.01
        self.late = getattr(self, "late", 0) + 1
        return self.late + self.count + float(self.seen[0].sum()) + len(self.seen) + self.__hidden


@dataclasses.dataclass
class Nested:
    entries: dict = dataclasses.field(default_factory=lambda: {"a": [{"b": [0]}]})

    def use(self):
        self.entries["a"][0]["b"].append(1)
        self.entries[len(self.entries)] = 0
        return len(self.entries) + len(self.entries["a"][0]["b"])


class Recent:
    def __init__(self):
        self.recent, self.kinds, self.bits = deque([1.0], maxlen=3), Counter(a=1), bytearray(2)
        self.line, self.space = queue.Queue(), SimpleNamespace(count=0)

    def use(self):
        self.recent.append(self.recent[-1] * 1.1)
        self.kinds.update("ab")
        self.bits[0] += 1
        self.line.put(1)
        self.space.count += 1
        return sum(self.recent) + self.kinds.total() + sum(self.bits) + self.line.qsize()


class Arrays:
    def __init__(self):
        self.array, self.total = np.zeros(3), torch.zeros(())
        self.objects = np.array([0, None], dtype=object)
        self.kinds = [
            torch.ones(2, dtype=torch.bfloat16),
            torch.ones(2, dtype=torch.complex64),
            torch.ones(1, dtype=torch.int8).expand(3),
            torch.eye(2).to_sparse(),
        ]

    def use(self):
        self.array += 1
        self.total += 1
        self.objects[0] += 1
        self.kinds[0].mul_(1.5)
        self.kinds[1].mul_(1.5)
        self.kinds[2].data[:1] += 1
        self.kinds[3].mul_(1.5)
        numbers = self.kinds[0].float().sum() + self.kinds[1].abs().sum() + self.kinds[3].sum()
        return float(numbers + self.total) + self.array.sum() + self.objects[0]


class Draws:
    def __init__(self):
        self.torch, self.numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def use(self):
        return 1 + float(torch.rand((), generator=self.torch)) + self.numpy.random()


class DrawsAlone:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def use(self):
        return 1 + float(torch.rand((), generator=self.generator))


class Copy:
    """A network that its owner does not know as a submodule, such as an average of the weights."""

    def __init__(self):
        norm = nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2, momentum=0.5))))
        self.networks = {"average": [nn.Sequential(nn.Linear(2, 2), norm)]}

    def use(self):
        (network,) = self.networks["average"]
        network.train()(torch.arange(4.0).reshape(2, 2))
        with torch.no_grad():
            network[0].weight.mul_(1.01)
            return 1 + float(network[0].weight.abs().sum() + network[1][0][0][0].running_var.sum())


class MadeLate:
    def use(self):
        self.count = getattr(self, "count", 0) + 1
        return self.count


KINDS = [WithSlots, Nested, Recent, Arrays, Draws, DrawsAlone, Copy, MadeLate]


class Scaled(torch.optim.SGD):
    """SGD that divides its gradients by a number that depends on all steps so far."""

    def __init__(self, params, kept):
        super().__init__(params, lr=0.1, momentum=0.9)
        self.kept = kept

    def step(self, closure=None):
        divisor = self.kept.use()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= divisor
        return super().step(closure)


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another one, with slow copies of the weights; as it is published."""

    def __init__(self, inner, every=3):
        self.inner, self.every, self.count = inner, every, 0
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, {}
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def zero_grad(self):
        self.inner.zero_grad()

    def step(self, closure=None):
        self.inner.step()
        self.count += 1
        if self.count % self.every == 0:
            for parameter, slow in self.slow.items():
                slow.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(slow)
                self.state[parameter]["slow"] = slow.clone()


class MovingAverage(torch.optim.Optimizer):
    """An optimizer with a state of its own beside that of the inner one."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.averages = inner, [p.detach() * 1 for p in inner.param_groups[0]["params"]]

    def step(self, closure=None):
        self.inner.step()
        for parameter, average in zip(self.param_groups[0]["params"], self.averages, strict=True):
            average.lerp_(parameter.detach(), 0.1)
            parameter.data.lerp_(average, 0.1)


class Numbers:
    """Tensors, arrays, networks and generators that are changed in place; no numbers of Python."""

    def __init__(self):
        self.kept = [torch.zeros(2), {"array": np.zeros(2)}, Copy(), Draws()]

    def use(self):
        total, arrays, network, draws = self.kept
        total += 1
        arrays["array"] += 1
        return float(total.sum()) + arrays["array"].sum() + network.use() + draws.use()


def hooks_of():
    """Hooks that know numbers, in every way in which a function can."""
    kept = Numbers()

    class Owner:
        def __init__(self):
            self.own = Numbers()

        def method(self, *_):
            return self.own.use()

    def argument(own, *_, other=None):
        return own.use() + (other.use() if other else 0)

    def default(*_, own=Numbers()):  # noqa: B008
        return own.use()

    return {
        "closure": lambda *_: kept.use(),
        "default": lambda *_, hook=default: hook(),
        "default by name": default,
        "method": Owner().method,
        "argument": partial(argument, Numbers()),
        "argument by name": partial(argument, Draws(), other=Numbers()),
    }


HOOKS = list(hooks_of())


def hooked(params, name):
    """SGD whose gradients are divided by numbers that hooks of it and of its weights know."""
    weight, bias = params
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    of_step, of_weight, of_bias = (hooks_of()[name] for _ in range(3))

    def before_step(*_, hook=of_step):
        for parameter in (weight, bias):
            parameter.grad /= hook()

    def after_gradient(parameter, hook=of_bias):
        parameter.grad /= hook()

    optimizer.register_step_pre_hook(before_step)
    weight.register_hook(lambda gradient, hook=of_weight: gradient / hook())
    bias.register_post_accumulate_grad_hook(after_gradient)
    return optimizer


OPTIMIZERS = {
    **{f"hooks: {name}": partial(hooked, name=name) for name in HOOKS},
    **{kind.__name__: lambda params, kind=kind: Scaled(params, kind()) for kind in KINDS},
    "Lookahead": lambda params: Lookahead(torch.optim.AdamW(params, lr=0.01)),
    "MovingAverage": lambda params: MovingAverage(torch.optim.SGD(params, lr=0.1, momentum=0.9)),
    "both": lambda params: Lookahead(MovingAverage(torch.optim.Adam(params, lr=0.01))),
}
DATA = [
    (torch.randn(16, 4, generator=torch.Generator().manual_seed(i)), torch.arange(16) % 3)
    for i in range(7)
]


def trained(make, ends=None):
    """The losses of a training, with a range test in the middle of it that ends in this way."""
    with seeded(0):
        model = nn.Linear(4, 3)
        optimizer, losses = make(model.parameters()), []

    def progress(done, total):
        if done == 12 and ends != "completes":
            raise ends

    for step, (x, y) in enumerate(DATA * 2):
        if step in (0, 4) and ends is not None:
            with suppress(KeyboardInterrupt, RuntimeError):
                range_test(
                    model, optimizer, nn.CrossEntropyLoss(), DATA, iterations=15, progress=progress
                )
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("ends", ["completes", KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_state_is_restored_wherever_it_keeps_it(name, ends):
    assert trained(OPTIMIZERS[name], ends) == trained(OPTIMIZERS[name])


@pytest.mark.parametrize(
    "iterator", [itertools.count(), (i for i in range(9)), {"deep": [iter([1, 2])]}]
)
@pytest.mark.parametrize("owner", ["optimizer", "model"])
def test_an_iterator_that_cannot_be_restored_is_refused_before_anything_runs(iterator, owner):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (optimizer if owner == "optimizer" else model).numbers = iterator
    with pytest.raises(LRRTError, match="holds an iterator") as error:
        range_test(model, optimizer, None, DATA, batch_loss=lambda batch: 1 / 0)
    assert "\n" not in str(error.value)


def test_an_iterator_that_only_a_hook_knows_is_no_obstacle():
    class Trainer:
        def __init__(self):
            self.steps = itertools.count()

        def hook(self, *_):
            next(self.steps)

    model = nn.Linear(4, 3)
    model.register_forward_hook(Trainer().hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="reads an iterator"):
        curve = range_test(model, optimizer, nn.CrossEntropyLoss(), DATA, lr_end=1e-3)
    assert len(curve) == 100


def test_what_a_hook_records_of_the_training_is_kept():
    seen, counted = [], {"calls": 0}

    def hook(module, *_):
        seen.append(module.training)
        counted["calls"] += 1

    model = nn.Linear(4, 3)
    model.register_forward_hook(hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"iterations": 15, "lr_end": 1e-3, "probe": DATA[0]}
    range_test(model, optimizer, nn.CrossEntropyLoss(), DATA, **options)
    assert seen == [True] * 15
    assert counted == {"calls": 0}  # a number that was there, as one that is computed with


def test_what_a_hook_knows_is_no_part_that_is_moved():
    model, norms = nn.Linear(4, 3), torch.zeros(3)
    optimizer = torch.optim.Adam(model.parameters())
    model.bias.register_hook(lambda gradient: norms.add_(gradient))
    parts = parts_of([optimizer])
    known = known_to_functions(parts, {})
    assert [id(norms) in map(id, each) for each in (parts, known)] == [False, True]


def test_an_iterator_that_has_ended_is_no_obstacle():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.all = model.parameters()
    list(optimizer.all)
    assert len(range_test(model, optimizer, nn.CrossEntropyLoss(), DATA, lr_end=1e-3)) == 100


class Carrying(nn.Module):
    """A model whose output depends on all the batches that it has seen."""

    def __init__(self, kept):
        super().__init__()
        self.layer, self.kept = nn.Sequential(nn.Linear(4, 1)), kept

    def forward(self, x):
        return self.layer(x) / self.kept.use()


class Recurrent(nn.Module):
    """Carries a hidden state, a queue of features in buffers, and a constraint on its weights."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out, self.state = nn.LSTM(4, 3), nn.Linear(3, 1), None
        self.rnn.register_buffer("queue", torch.zeros(5, 3))
        self.rnn.register_buffer("place", torch.zeros(1, dtype=torch.long), persistent=False)
        self.words = nn.Embedding(5, 3, max_norm=0.5)
        self.norm = nn.utils.spectral_norm(nn.Linear(3, 3))

    def forward(self, x):
        y, state = self.rnn(x[None, :3], self.state)
        self.state = tuple(part.detach() for part in state)
        self.rnn.queue[int(self.rnn.place)] = y[0, 0].detach()
        self.rnn.place[0] = (self.rnn.place[0] + 1) % 5
        self.out.weight.data.clamp_(-0.3, 0.3)
        if not hasattr(self, "first"):
            self.first = x.mean().item()
        words = self.words(torch.arange(1 + len(x) % 5)).mean(0)
        return self.out(self.norm(y[0]) + self.rnn.queue.mean(0) + words) + self.first


def with_hooks(name):
    """A model whose outputs are divided by numbers that its hooks know."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    for layer in model:
        hook = hooks_of()[name]
        layer.register_forward_hook(lambda _, __, output, hook=hook: output / hook())
    return model


MODELS = {
    **{f"hooks: {name}": partial(with_hooks, name) for name in HOOKS},
    **{kind.__name__: lambda kind=kind: Carrying(kind()) for kind in KINDS},
    "Recurrent": Recurrent,
}


class MovingLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.seen, self.kept = torch.ones(()), [], Nested()

    def forward(self, output, target):
        loss = (output - target[: len(output)]).square().mean()
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        self.seen.append(loss.item())
        return loss / self.mean / self.kept.use() * len(self.seen)


class PlainLoss:
    def __init__(self):
        self.kept = WithSlots()

    def __call__(self, output, target):
        return (output - target[: len(output)]).square().mean() / self.kept.use()


class ItsOwnBuffer(nn.Module):
    """Returns a buffer that changes in place, which an evaluation restores."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(()))

    def forward(self, output, target):
        loss = (output - target[: len(output)]).square().mean()
        if torch.is_grad_enabled():
            return loss
        return self.last.copy_(loss)


def losses(make, make_loss=MovingLoss, **options):
    with seeded(0):
        model = make()
        data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(9)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"iterations": 12, "lr_end": 1e-2, "stop_multiple": None, **options}
    return range_test(model, optimizer, make_loss(), data, **options)


HELD_OUT = (torch.randn(7, 4, generator=torch.Generator().manual_seed(9)), torch.zeros(7, 1))


@pytest.mark.parametrize(
    ("make", "make_loss"),
    [
        *((make, MovingLoss) for make in MODELS.values()),
        (lambda: nn.Linear(4, 1), PlainLoss),
        (lambda: nn.Linear(4, 1), ItsOwnBuffer),
    ],
)
def test_an_evaluation_changes_nothing_that_is_carried_from_batch_to_batch(make, make_loss):
    without = losses(make, make_loss).loss.tolist()
    assert losses(make, make_loss, probe=HELD_OUT).loss.tolist() == without
    validation = Validation([HELD_OUT, HELD_OUT], [HELD_OUT] * 3)
    assert losses(make, make_loss, validation=validation).loss.tolist() == without


def test_the_loss_of_an_evaluation_is_read_before_it_is_restored():
    curve = losses(lambda: nn.Linear(4, 1), ItsOwnBuffer, probe=HELD_OUT)
    expected = losses(lambda: nn.Linear(4, 1), nn.MSELoss, probe=HELD_OUT)
    assert curve.probe_loss.tolist() == expected.probe_loss.tolist()


def test_parts_that_are_shared_or_circular_are_found_once():
    part = SimpleNamespace(other=[1, None])
    part.other[1] = part
    assert [id(each) for each in parts_of([part, part.other])] == [id(part), id(part.other)]


def test_memory_that_may_not_be_written_is_left_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped.flags.writeable = False
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.from_numpy(mapped)
    with Snapshot([mapped, tensor]):
        pass
    assert tensor.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("value", [-0.0, float("nan")])
def test_a_tensor_is_restored_bit_for_bit(value):
    tensor = torch.tensor([value])
    with Snapshot([tensor]):
        tensor.zero_()
    assert tensor.view(torch.int32).equal(torch.tensor([value]).view(torch.int32))


def test_a_total_that_has_become_part_of_a_graph_is_a_plain_tensor_again():
    total, weight = torch.zeros(()), torch.ones((), requires_grad=True)
    with Snapshot([total]):
        total += weight
        assert total.requires_grad
    assert total.is_leaf
    assert not total.requires_grad
    assert total.item() == 0.0


def test_a_list_that_iterates_in_its_own_way_is_restored_as_it_was():
    class Doubled(list):
        def __iter__(self):
            return (2 * value for value in super().__iter__())

    values = Doubled([1, 2])
    with Snapshot([values]):
        values.append(3)
    assert list(values) == [2, 4]
