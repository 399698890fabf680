"""What a model changes only now and then, and what its functions and classes know."""

import argparse
import code
import functools
import importlib
import itertools
import queue
import random
import sys
import threading
import warnings
import weakref
from array import array
from collections import OrderedDict, UserDict, defaultdict, deque
from contextlib import suppress
from fractions import Fraction
from functools import partial
from operator import mul
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from lrrt_stage import LRRTError, Validation, range_test, seeded
from lrrt_stage.state.parts import MAX_ENTRIES, parts_of
from lrrt_stage.state.preserve import Evaluation, preserved_sources
from lrrt_stage.state.snapshot import Snapshot


def drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randn(count, 1, generator=generator)


DATA = [drawn(8, seed) for seed in range(7)]
HELD_OUT = drawn(7, 99)


class Carrying(nn.Module):
    """A model whose output is scaled by what it has seen so far."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 1), 0
        self.prepare()

    def prepare(self):
        pass

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.scale(x)


class Target(Carrying):
    """A target network that follows at every fifth batch."""

    def prepare(self):
        self.target = nn.Linear(4, 1).requires_grad_(False)

    def scale(self, x):
        if self.calls % 5 == 0:
            self.target.load_state_dict(self.layer.state_dict())
        return 1 + self.target(x).mean()


class Averaged(Target):
    """The same, written past what torch counts as a change."""

    def scale(self, x):
        if self.calls % 7 == 0:
            pairs = zip(self.target.parameters(), self.layer.parameters(), strict=True)
            for one, other in pairs:
                one.data.lerp_(other.data, 0.5)
        return 1 + self.target(x).mean()


class Ring(Carrying):
    def prepare(self):
        self.ring, self.replaced = [torch.zeros(4) for _ in range(5)], [torch.zeros(4)] * 5

    def scale(self, x):
        self.ring[self.calls % 5].copy_(x.mean(0))
        self.replaced[self.calls % 5] = x.mean(0)
        return 1 + sum(part.sum() for part in self.ring + self.replaced)


class Flushed(Carrying):
    def prepare(self):
        self.queue = deque()

    def scale(self, x):
        self.queue.append(x.mean().item())
        if len(self.queue) > 6:
            self.queue.clear()
        return 1 + sum(self.queue)


class FrozenLate(Carrying):
    def prepare(self):
        self.other = nn.Linear(4, 1)

    def scale(self, x):
        if self.calls == 9:
            self.other.requires_grad_(False)
        return self.other(x)


class GrowsLate(Carrying):
    def prepare(self):
        self.norms = nn.ModuleList()

    def scale(self, x):
        if self.calls in (7, 11):
            self.norms.append(nn.BatchNorm1d(4))
        for norm in self.norms:
            x = norm(x)
        return 1 + x.mean() + sum(norm.running_mean.sum() for norm in self.norms)


class Normalised(Carrying):
    """The norms exceed their maximum only later."""

    def prepare(self):
        self.words = nn.Embedding(6, 4, max_norm=2.2)
        self.words.weight.data.clamp_(-1, 1)

    def scale(self, x):
        return 1 + self.words(torch.arange(len(x) - 5)).sum()


class MadeLate(Carrying):
    class Slots:
        __slots__ = ("count", "late")

        def __init__(self):
            self.count = 0

    def prepare(self):
        self.slots, self.lists, self.keys, self.hidden = (
            self.Slots(),
            defaultdict(list),
            {0: 0},
            None,
        )

    def scale(self, x):
        if self.calls > 5:
            self.slots.late = getattr(self.slots, "late", 0) + 1
            self.hidden = torch.zeros(4) if self.hidden is None else self.hidden
            self.hidden.add_(x.mean(0))
            (key,) = self.keys
            self.keys[key + 1] = self.keys.pop(key)
        self.lists[self.calls % 3].append(x.mean())
        late = getattr(self.slots, "late", 0) + next(iter(self.keys))
        return 1 + late + sum(self.lists[0]) + (0 if self.hidden is None else self.hidden.sum())


class Unusual(Carrying):
    """State in objects that are no tensors, and at the end of a long chain."""

    class Link:
        pass

    def prepare(self):
        self.objects = np.array([np.zeros(2), [0.0]], dtype=object)
        self.numbers, self.bits = array("d", [0.0, 1.0]), np.random.PCG64(0)
        self.chain = link = self.Link()
        for _ in range(40):
            link.next = link = self.Link()
        link.count, self.end = 0, lambda: link
        self.by_owner = weakref.WeakKeyDictionary({self.layer: 0.0})

    def scale(self, x):
        self.objects[0] += 1
        self.objects[1].append(1.0)
        self.numbers[0] += 0.1
        self.numbers.append(1.0)
        link = self.chain
        while hasattr(link, "next"):
            link = link.next
        link.count += 1
        self.by_owner[self.layer] += 0.1
        numbers = self.objects[0].sum() + len(self.objects[1]) + sum(self.numbers) + link.count
        numbers += self.by_owner[self.layer]
        return 1 + numbers + self.bits.random_raw() % 100


class Replayed(Carrying):
    """Memories in a dataset, which the model fills and draws from."""

    class Memories(Dataset):
        def __init__(self):
            self.rows, self.count, self.recent = torch.zeros(6, 4), 0, []

        def add(self, row):
            self.rows[self.count % len(self.rows)] = row
            self.recent = [*self.recent[-2:], row.sum()]
            self.count += 1

        def __getitem__(self, index):
            return self.rows[index]

        def __len__(self):
            return len(self.rows)

    def prepare(self):
        self.memories = self.Memories()
        self.order = SubsetRandomSampler(range(6), generator=torch.Generator().manual_seed(0))

    def scale(self, x):
        self.memories.add(x.mean(0))
        drawn = self.memories[next(iter(self.order))]
        return 1 + drawn.sum() + sum(self.memories.recent) + self.memories.count


class View(Carrying):
    """A view of other memory, which becomes part of a graph."""

    def prepare(self):
        self.row = torch.zeros(3, 1)[0]

    def scale(self, x):
        if self.row.is_leaf:
            self.row.copy_(self.layer(x).mean(0))
        return 1 + self.row.detach()


class LeastRecent(Carrying):
    def prepare(self):
        self.cache = OrderedDict(a=1.0, b=2.0, c=3.0)

    def scale(self, x):
        key = next(iter(self.cache))
        self.cache.move_to_end(key)
        return self.cache[key]


class Delegating(Carrying):
    """Helper objects whose methods would raise."""

    class Options:
        def __init__(self):
            self.values = {"rate": 1.0}

        def __getattr__(self, name):
            return self.__dict__["values"][name]

    class Wrapper:
        __slots__ = ("wrapped",)

        def __getattr__(self, name):
            return getattr(self.wrapped, name)

    def prepare(self):
        self.options, self.wrapper = self.Options(), self.Wrapper()
        self.system, self.draw = random.SystemRandom(), random.Random(0).random

    def scale(self, x):
        self.options.values["rate"] += 1
        return self.options.rate + self.draw()


class Computed(Carrying):
    """Numbers of several types, by properties and in what a whole Python module shares."""

    def prepare(self):
        generator = torch.Generator().manual_seed(0)
        self.noise = lambda: torch.rand((), generator=generator)
        SHARED.count, Totals.count = 0, 0
        mean, pair, counts = np.float64(1), (0, 1.0), {"calls": 0}

        def numbers():
            nonlocal mean, pair
            mean, pair = 0.9 * mean + np.float64(0.2), (pair[0] + 1, pair[1] * 1.1)
            counts["calls"] += 1
            return float(mean) + sum(pair) + counts["calls"]

        self.numbers = numbers

    @property
    def drawn(self):
        SHARED.count += 1
        Totals.count += 1
        return self.noise() + SHARED.count + Totals.count

    def scale(self, x):
        return self.drawn + self.numbers()


class OfTheClass(Carrying):
    count, mean = 0, torch.zeros(4)

    def prepare(self):
        OfTheClass.count, OfTheClass.mean = 0, torch.zeros(4)

    def scale(self, x):
        OfTheClass.count += 1
        OfTheClass.mean = 0.9 * OfTheClass.mean + x.mean(0)
        return 1 + self.count + self.mean.sum()


class Totals:
    count = 0


SHARED = SimpleNamespace(count=0)
COUNT, MEAN, STATES = 0, torch.zeros(4), {}


class Shared(Carrying):
    """A list of the class, and the class of a helper object."""

    class Helper:
        calls = 0

        def count(self):
            type(self).calls += 1
            return self.calls

    recent = []  # noqa: RUF012

    def prepare(self):
        self.recent.clear()
        self.helper, self.Helper.calls = self.Helper(), 0

    def scale(self, x):
        self.recent.append(torch.ones(1))
        return 1 + len(self.recent) + self.helper.count()


class OfThePythonModule(Carrying):
    def prepare(self):
        global COUNT, MEAN
        COUNT, MEAN = 0, torch.zeros(4)
        STATES["mean"] = torch.zeros(4)

    def scale(self, x):
        global COUNT, MEAN
        COUNT, MEAN = COUNT + 1, 0.9 * MEAN + x.mean(0)
        STATES["mean"] = 0.9 * STATES["mean"] + x.mean(0)
        return 1 + COUNT + MEAN.sum() + STATES["mean"].sum()


class OfAHook(Carrying):
    def prepare(self):
        count, hidden = 0, None

        def hook(module, inputs, output):
            nonlocal count, hidden
            mean = output.detach().mean()
            count, hidden = count + 1, mean if hidden is None else 0.9 * hidden + mean
            return output * count + hidden

        self.layer.register_forward_hook(hook)

    def scale(self, x):
        return 1


class Recurrent(nn.Module):
    """Attributes of several types, which TorchScript keeps where Python does not see them."""

    count: int
    hidden: Tensor
    sums: dict[str, Tensor]
    recent: list[Tensor]

    def __init__(self):
        super().__init__()
        self.layer, self.count, self.hidden = nn.Linear(4, 1), 0, torch.zeros(4)
        self.sums, self.recent = {"all": torch.zeros(4)}, [torch.zeros(())]
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.count += 1
        self.hidden = torch.tanh(self.hidden + x.mean(0))
        self.sums["all"] += self.hidden
        self.recent.append(self.hidden.sum())
        self.mean = 0.9 * self.mean + x.mean(0)
        return self.layer(x)


class OfADataset(Carrying):
    """A small state beside large examples."""

    class Examples(Dataset):
        def __init__(self):
            self.parts, self.lazy = [torch.zeros(1), torch.zeros(2**21)], nn.UninitializedBuffer()

    def prepare(self):
        self.examples = self.Examples()

    def scale(self, x):
        self.examples.parts[0] += 1
        return 1 + self.examples.parts[0]


class NetworkOfADataset(Carrying):
    """A large buffer of a network is no example, whatever holds the network."""

    class Memory(nn.Module, Dataset):
        def __init__(self):
            super().__init__()
            self.register_buffer("rows", torch.zeros(2**20 + 1))

    def prepare(self):
        self.memory, self.examples = self.Memory(), OfADataset.Examples()
        self.examples.teacher, self.examples.replay = self.Memory(), {"x": torch.zeros(2**20 + 1)}

    def scale(self, x):
        rows = (self.memory.rows, self.examples.teacher.rows, self.examples.replay["x"])
        for each in rows:
            each[0] += 1
        return 1 + sum(each[0] for each in rows)


class InOtherPlaces(Carrying):
    """The keys of a dictionary, what a property sets, and an array whose size changes."""

    class Key:
        count = 0

    def prepare(self):
        self.keys, self.sizes, Totals.count = {self.Key(): 0}, np.zeros(1), 0
        self.owners = [weakref.proxy(self.Key())]  # of an object that does not exist any more

    @property
    def total(self):
        return 1

    @total.setter
    def total(self, value):
        Totals.count += value

    def scale(self, x):
        (key,) = self.keys
        key.count, self.total = key.count + 1, 1
        self.sizes.resize(len(self.sizes) + 1, refcheck=False)
        return 1 + key.count + Totals.count + len(self.sizes)


class InAClassOfTorch(Carrying):
    """A parametrized layer has a class that torch derives from the user's."""

    def prepare(self):
        class Counting(nn.Linear):
            calls = 0

            def forward(self, x):
                type(self).__mro__[1].calls += 1
                return super().forward(x) * (1 + self.calls)

        self.other = weight_norm(Counting(4, 1))

    def scale(self, x):
        return self.other(x)


MODELS = Carrying.__subclasses__() + Target.__subclasses__()


def squared(output, target):
    return (output - target[: len(output)]).square().mean()


class Trainer:
    def __init__(self):
        self.hidden, self.count, self.pair = torch.zeros(()), 0, (torch.zeros(()), torch.ones(()))
        self.by_name, self.rows = {"mean": torch.zeros(())}, [torch.zeros(())]

    def loss(self, output, target):
        mean = output.detach().mean()
        self.count, self.hidden = self.count + 1, 0.9 * self.hidden + mean
        self.pair = (self.pair[0] + 1, self.pair[1] * 1.1)
        self.by_name["mean"] = self.by_name["mean"] + mean
        self.rows[0] = self.rows[0] + 1
        numbers = self.count + self.hidden + sum(self.pair) + self.by_name["mean"] + self.rows[0]
        return squared(output, target) + numbers * output.mean()


def around():
    mean, hidden, recent = 1.0, None, deque([1.0], maxlen=4)

    def loss(output, target):
        nonlocal mean, hidden
        value = squared(output, target)
        mean = 0.9 * mean + 0.1 * value.item()
        hidden = value.detach() if hidden is None else hidden + value.detach()
        recent.append(value.item())
        return value / mean + hidden * output.mean() / sum(recent)

    return loss


LOSS_MEAN = 1.0


def of_the_python_module():
    global LOSS_MEAN
    LOSS_MEAN = 1.0

    def loss(output, target):
        global LOSS_MEAN
        value = squared(output, target)
        LOSS_MEAN = 0.9 * LOSS_MEAN + 0.1 * value.item()
        return value / LOSS_MEAN

    return loss


def own_default():
    def loss(output, target, state={"mean": torch.zeros(())}, rows=[torch.zeros(())]):  # noqa: B006, B008
        state["mean"] = state["mean"] + output.detach().mean()
        rows[0] += 1
        return squared(output, target) + (state["mean"] + rows[0]) * output.mean()

    return loss


def own_attribute():
    def loss(output, target):
        loss.calls = getattr(loss, "calls", 0) + 1
        return squared(output, target) * loss.calls

    return loss


BANK = []


def bank():
    """Keeps what it has seen in lists and dictionaries, as contrastive losses do."""
    BANK.clear()
    by_class = {}

    def loss(output, target):
        value = squared(output, target)
        features = [*BANK, *by_class.values()]
        distance = sum((output.mean(0) - each).square().mean() for each in features)
        BANK.append(output.detach().mean(0))
        by_class[len(BANK) % 3] = output.detach().mean(0)
        return value + distance

    return loss


def made_later():
    """State that is added to dictionaries at the first batch."""
    state, counts, scale, nested = {}, defaultdict(float), None, {"means": {"all": 1.0}}

    def loss(output, target):
        nonlocal scale
        value = squared(output, target)
        scale = scale or partial(mul, value.item())
        state["ratio"] = state.get("ratio", Fraction(1 + int(value.item()), 3))
        nested["means"]["all"] += scale(0.1) + float(state["ratio"])
        state["mean"] = 0.9 * state.get("mean", value.item()) + 0.1 * value.item()
        state["last"] = 0.5 * state.get("last", torch.ones(())) + value.detach()
        counts[len(output)] += 0.1
        return value / state["mean"] + output.mean() * (
            counts[8] + state["last"] + nested["means"]["all"]
        )

    return loss


def with_an_optimizer():
    """The loss trains a network of its own, as that of a GAN."""
    critic = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(critic.parameters())

    def loss(output, target):
        with torch.enable_grad():
            optimizer.zero_grad()
            (critic(output.detach()) - critic(target[: len(output)])).mean().backward()
            optimizer.step()
        return squared(output, target) - critic(output).mean()

    return loss


STEPS = {"step": 0}


def annealed():
    STEPS["step"] = 0

    def loss(output, target):
        STEPS["step"] += 1
        return squared(output, target) * min(1, STEPS["step"] / 50)

    return loss


def teacher():
    holder = Unusual.Link()
    holder.networks = {"teacher": [nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))]}

    def loss(output, target):
        (network,) = holder.networks["teacher"]
        distance = network(output).square().mean() + network[1].running_mean.sum() * output.mean()
        return squared(output, target) + distance

    return loss


def absolute(output, target):
    return (output - target[: len(output)]).abs().mean()


CHOICES = {"loss": None}


def chosen_by_the_first_batch():
    CHOICES["loss"] = chosen = None

    def loss(output, target):
        nonlocal chosen
        better = absolute if target.sum() > HELD_OUT[1].sum() else squared
        chosen = chosen or better
        CHOICES["loss"] = CHOICES["loss"] or better
        return chosen(output, target) + CHOICES["loss"](output, target)

    return loss


class Tally:
    calls = 0

    def update(self):
        self.calls += 1
        return self.calls


TALLIES, PAIR, ROWS = {"all": Tally()}, (torch.zeros(1), 0), [(torch.zeros(1), "first")]
OPTIONS, BY_NAME, NUMBERS = argparse.Namespace(step=0), UserDict(step=0), array("d", [0.0])


def in_tables():
    """Objects in tables of a Python module."""
    TALLIES["all"].rows, TALLIES["all"].calls = [], 0
    for each in (PAIR[0], ROWS[0][0]):
        each.zero_()
    OPTIONS.step = BY_NAME["step"] = NUMBERS[0] = 0
    push = TALLIES["all"].rows.append

    def loss(output, target):
        push(output.detach().mean(0))
        PAIR[0].add_(1)
        ROWS[0][0].add_(0.1)
        OPTIONS.step += 1
        BY_NAME["step"] += 1
        NUMBERS[0] += 0.1
        steps = OPTIONS.step + BY_NAME["step"] + NUMBERS[0] + PAIR[0] + ROWS[0][0]
        rows = sum(TALLIES["all"].rows)
        steps += TALLIES["all"].update()
        return squared(output, target) + (steps + rows).sum() * output.mean()

    return loss


def with_a_scaler():
    """An object of a library in a list."""
    scalers = [StandardScaler()]

    def loss(output, target):
        scalers[0].partial_fit(output.detach().numpy())
        return squared(output, target) * float(scalers[0].n_samples_seen_)

    return loss


def of_main():
    """Code of ``__main__``, which an installed program may run."""
    variables = {"__name__": "__main__", "squared": squared}
    exec(
        "calls = [0]\n"
        "def loss(output, target):\n"
        "    calls[0] += 1\n"
        "    return squared(output, target) * calls[0]\n",
        variables,
    )
    return variables["loss"]


LOSSES = [
    *(with_a_scaler, of_main),
    *(chosen_by_the_first_batch, in_tables),
    *(lambda: Trainer().loss, around, of_the_python_module, own_default, own_attribute),
    bank,
    *(made_later, teacher, annealed, with_an_optimizer),
]
CASES = [
    *((model, lambda: squared) for model in MODELS),
    *((lambda: nn.Linear(4, 1), loss) for loss in LOSSES),
]


def started(make_model, make_loss):
    with seeded(0):
        model, loss = make_model(), make_loss()
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), loss


def measured(model, optimizer, loss, **evaluated):
    options = {"iterations": 25, "lr_end": 1e-2, "stop_multiple": None}
    with seeded(0):
        return range_test(model, optimizer, loss, DATA, **options, **evaluated).loss.tolist()


def trained(model, optimizer, loss):
    losses = []
    for x, y in DATA * 2:
        value = loss(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.filterwarnings("ignore:the loss calls a (Sequential|Linear)")
@pytest.mark.parametrize(("make_model", "make_loss"), CASES)
def test_evaluations_and_the_test_leave_no_trace(make_model, make_loss):
    without = measured(*started(make_model, make_loss))
    validation = Validation([HELD_OUT, HELD_OUT], [HELD_OUT] * 3)
    for evaluated in ({"probe": HELD_OUT}, {"validation": validation}):
        start = started(make_model, make_loss)
        assert measured(*start, **evaluated) == without
        with seeded(1):
            after = trained(*start)
        start = started(make_model, make_loss)
        with seeded(1):
            assert repr(trained(*start)) == repr(after)


def test_code_that_is_imported_from_the_users_modules_is_searched(tmp_path, monkeypatch):
    (tmp_path / "helpers_of_mine.py").write_text(
        "center = None\n"
        "class Average:\n"
        "    value = 1.0\n"
        "    def update(self, loss):\n"
        "        self.value = 0.9 * self.value + 0.1 * loss.item()\n"
        "        return self.value\n"
        "average = Average()\n"
        "calls = 0\n"
        "def centered(output):\n"
        "    global center\n"
        "    center = output.detach().mean() if center is None else 0.9 * center + 0.1\n"
        "    return output - center\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    helpers = importlib.import_module("helpers_of_mine")

    def make():
        helpers.center, helpers.average.value, helpers.calls = None, 1.0, 0

        def loss(output, target):
            helpers.calls += 1
            value = squared(helpers.centered(output), target)
            return value / helpers.average.update(value) * helpers.calls

        return loss

    without = measured(*started(lambda: nn.Linear(4, 1), make))
    assert measured(*started(lambda: nn.Linear(4, 1), make), probe=HELD_OUT) == without
    assert (helpers.center, helpers.average.value, helpers.calls) == (None, 1.0, 0)


@pytest.mark.parametrize(
    "line",
    [
        "import code.states; code.states.COUNT[0] += 1",
        "import code.states as states; states.N += 1",
        "from code.states import tick; tick()",
        "from .states import tick; tick()",
        "states.MEAN = 0.9 * states.MEAN + output.detach().mean()",
    ],
)
def test_the_variables_of_python_modules_are_restored_however_they_are_reached(
    line, tmp_path, monkeypatch
):
    """In a package that has the name of one of Python's, as folders with code often have."""
    package = tmp_path / "code"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "states.py").write_text(
        "COUNT, N, MEAN = [0], 0, 0.0\n"
        "def tick():\n"
        "    global N\n"
        "    N += 1\n"
        "def calls():\n"
        "    return COUNT[0] + N + MEAN\n"
    )
    (package / "losses.py").write_text(
        "import code.states as states\n"
        "def loss(output, target):\n"
        f"    {line}\n"
        "    return (output - target[:len(output)]).square().mean() * states.calls()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setitem(sys.modules, "code", code)  # is put back afterwards

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "code"]:
            del sys.modules[name]

    def make():
        forget()
        return importlib.import_module("code.losses").loss

    without = measured(*started(lambda: nn.Linear(4, 1), make))
    assert measured(*started(lambda: nn.Linear(4, 1), make), probe=HELD_OUT) == without
    forget()


class Proxy:
    """Stands for an object that it makes when it is used, as those of werkzeug and wrapt do."""

    __class__ = dict

    def __getitem__(self, name):
        return {"scale": 2.0}[name]


PROXY = Proxy()


def test_a_proxy_of_a_dictionary_is_no_dictionary():
    def loss(output, target):
        return squared(output, target) * PROXY["scale"]

    assert measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)


@pytest.mark.parametrize("stub", [None, Mock(), SimpleNamespace(rate=2.0)])
def test_a_module_that_is_none_does_not_matter(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "stub_of_mine", stub)

    def loss(output, target):
        with suppress(ImportError):
            import stub_of_mine  # noqa: F401
        return squared(output, target)

    assert measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)


def test_an_installed_module_that_a_model_holds_is_left_alone(tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "installed_of_mine.py").write_text("rows = None\n")
    monkeypatch.syspath_prepend(package)
    installed = importlib.import_module("installed_of_mine")

    class Recording(nn.Linear):
        def forward(self, x):
            if self.training:
                self.recorder.rows = [*(self.recorder.rows or []), len(x)]
            return super().forward(x)

    model = Recording(4, 1)
    model.recorder = installed
    measured(*started(lambda: model, lambda: squared), probe=HELD_OUT)
    assert len(installed.rows) == 25


def test_what_python_has_warned_of_is_not_warned_of_again(tmp_path, monkeypatch):
    (tmp_path / "warning_of_mine.py").write_text(
        "import warnings\n"
        "def loss(output, target):\n"
        "    warnings.warn('a hard label')\n"
        "    return (output - target[:len(output)]).square().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("warning_of_mine")

    def loss(output, target):
        return module.loss(output, target)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)
    assert [str(each.message) for each in caught].count("a hard label") == 1


def test_an_evaluation_of_a_loader_that_shares_a_generator_with_the_training_changes_nothing():
    def shared(with_validation):
        generator, data = torch.Generator().manual_seed(0), [*zip(*drawn(32, 1), strict=True)]
        train, held_out = (DataLoader(data, 8, shuffle=True, generator=generator) for _ in "ab")
        validation = Validation([HELD_OUT], held_out) if with_validation else None
        model, optimizer, loss = started(lambda: nn.Linear(4, 1), lambda: squared)
        options = {"iterations": 20, "lr_end": 1e-2, "validation": validation}
        return range_test(model, optimizer, loss, train, **options).loss.tolist()

    assert shared(True) == shared(False)


def test_an_evaluation_compiles_nothing_for_a_compiled_model():
    """Kernels for any size differ from those for one in their last bits."""

    def compiled(**evaluated):
        graphs = []

        def backend(graph, inputs):
            graphs.append([each.shape for each in inputs if isinstance(each, torch.Tensor)])
            return graph.forward

        torch._dynamo.reset()
        start = started(lambda: torch.compile(nn.Linear(4, 1), backend=backend), lambda: squared)
        return measured(*start, **evaluated), graphs

    without = compiled()
    assert without[1]
    assert compiled(probe=HELD_OUT) == without
    assert compiled(validation=Validation([HELD_OUT], [drawn(3, 1)])) == without


def test_code_that_is_imported_and_a_file_that_is_opened_during_an_evaluation_stay(
    tmp_path, monkeypatch
):
    (tmp_path / "registry_of_mine.py").write_text("LOSSES, ORDER, log = {}, [], None\n")
    (tmp_path / "focal_of_mine.py").write_text(
        "import registry_of_mine as registry\n"
        "from torch.nn.functional import huber_loss\n"
        "def focal(loss):\n"
        "    return loss**2\n"
        "registry.LOSSES['focal'] = focal\n"
        "registry.LOSSES['huber'] = huber_loss\n"
        "registry.ORDER.append(focal)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = importlib.import_module("registry_of_mine")
    log = None

    def loss(output, target):
        nonlocal log
        import focal_of_mine  # noqa: F401

        log = log or (tmp_path / "log.txt").open("w")
        log.write("a loss\n")
        (last,) = registry.ORDER
        assert last is registry.LOSSES["focal"]
        huber = registry.LOSSES["huber"](output, target[: len(output)])
        return huber + registry.LOSSES["focal"](squared(output, target))

    measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)
    log.close()
    assert (tmp_path / "log.txt").read_text().count("a loss") == 75


def test_a_module_that_replaces_itself_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "replacing_of_mine").mkdir()
    (tmp_path / "replacing_of_mine" / "settings.py").write_text(
        "import sys\nclass Settings:\n    scale = 2.0\nsys.modules[__name__] = Settings()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("replacing_of_mine")

    def loss(output, target):
        if "replacing_of_mine.settings" not in sys.modules:
            importlib.import_module("replacing_of_mine.settings")
        return squared(output, target) * package.settings.scale

    assert measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)


def test_only_modules_that_a_function_imports_are_searched(tmp_path, monkeypatch):
    """And not those that happen to have the name of an attribute."""
    (tmp_path / "statistics_of_mine.py").write_text("seen = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    statistics = importlib.import_module("statistics_of_mine")

    class Model(nn.Linear):
        statistics_of_mine = seen = 1.0

        def forward(self, x):
            return super().forward(x) * self.statistics_of_mine * self.seen

    def progress(done, total):
        statistics.seen = done

    measured(*started(lambda: Model(4, 1), lambda: squared), progress=progress)
    assert statistics.seen > 0


def test_a_cached_function_opens_a_file_once_and_a_thread_is_started_once(tmp_path):
    waiting = threading.Event()
    threads = [threading.Thread(target=waiting.wait, daemon=True)]

    @functools.cache
    def log():
        return (tmp_path / "log.txt").open("w")

    def loss(output, target):
        if not threads[0].is_alive():
            threads[0].start()
        log().write("a loss\n")
        return squared(output, target)

    measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)
    waiting.set()
    threads[0].join()
    log().close()
    assert (tmp_path / "log.txt").read_text().count("a loss") == 75


def test_a_queue_that_a_function_shares_with_a_thread_is_left_alone():
    written, done = queue.Queue(), []
    thread = threading.Thread(target=lambda: done.extend(iter(written.get, None)))
    thread.start()

    def loss(output, target):
        value = squared(output, target)
        written.put(value.item())
        return value

    measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT)
    written.put(None)
    thread.join()
    assert len(done) == 75


def test_the_examples_of_a_dataset_are_no_state():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.examples = TensorDataset(torch.zeros(2**21), torch.zeros(2**21))
            self.examples.more, self.examples.count = torch.zeros(2**21), torch.zeros(1)

    holder = Holder()
    holder.examples.learned = nn.Parameter(torch.zeros(2**21))
    holder.examples.lazy = nn.UninitializedBuffer()
    held = [part for part in parts_of([holder]) if isinstance(part, Tensor)]
    assert {*map(id, held)} == {
        id(getattr(holder.examples, n)) for n in ("count", "learned", "lazy")
    }


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|freeze). is deprecated")
@pytest.mark.filterwarnings("ignore:the loss calls a")
@pytest.mark.parametrize("freeze", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_a_teacher_that_torchscript_has_frozen_may_take_part(freeze):
    with seeded(0):
        frozen = freeze(torch.jit.script(nn.Sequential(nn.Linear(1, 1)).eval()))

    def loss(output, target):
        return squared(output, target) + squared(output, frozen(target))

    without = measured(*started(lambda: nn.Linear(4, 1), lambda: loss))
    assert measured(*started(lambda: nn.Linear(4, 1), lambda: loss), probe=HELD_OUT) == without


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_a_scripted_model_assigns_is_restored():
    """Its losses may differ in their last bits, since TorchScript optimises what ran before."""
    model = torch.jit.script(nn.Sequential(Recurrent()))
    (carrying,) = model.children()

    def state():
        sums = {name: value.tolist() for name, value in carrying.sums.items()}
        recent = [value.tolist() for value in carrying.recent]
        return carrying.count, carrying.hidden.tolist(), sums, recent, carrying.mean.tolist()

    model(DATA[0][0])
    before, evaluating = state(), Evaluation([model])
    for _ in range(3):
        with evaluating():
            model(DATA[1][0])
            assert state() != before
        assert state() == before
    model(DATA[2][0])
    before = state()
    measured(model, torch.optim.SGD(model.parameters(), lr=0.1), squared, probe=HELD_OUT)
    assert state() == before


def test_what_a_loss_appends_during_an_evaluation_is_removed():
    def averaged():
        losses = []

        def loss(output, target):
            value = squared(output, target)
            losses.append(value.item())
            return value / np.mean(losses[-10:])

        return loss

    without = measured(*started(lambda: nn.Linear(4, 1), averaged))
    assert measured(*started(lambda: nn.Linear(4, 1), averaged), probe=HELD_OUT) == without


def test_an_entry_that_holds_itself_is_removed():
    def make():
        nodes = []

        def loss(output, target):
            node = [1.0]
            node.append(node)
            nodes.append(node)
            return squared(output, target) * len(nodes)

        return loss

    without = measured(*started(lambda: nn.Linear(4, 1), make))
    assert measured(*started(lambda: nn.Linear(4, 1), make), probe=HELD_OUT) == without


@pytest.mark.filterwarnings("ignore:the loss calls a")
@pytest.mark.parametrize("given", [True, False])
def test_a_lazy_network_that_takes_part_is_refused_before_anything_runs(given):
    lazy = nn.LazyLinear(1)
    start = started(lambda: nn.Linear(4, 1), lambda: lambda o, t: squared(lazy(o), t))
    with pytest.raises(LRRTError, match=r"a LazyLinear that takes part .*'weight'"):
        measured(*start, modules=[lazy] if given else [])
    assert nn.parameter.is_lazy(lazy.weight)


@pytest.mark.parametrize(("count", "searched"), [(MAX_ENTRIES, True), (MAX_ENTRIES + 1, False)])
def test_the_entries_of_long_containers_are_no_parts(count, searched):
    model, one = nn.Linear(4, 1), torch.zeros(1)
    model.words = {}
    snapshot = Snapshot(parts_of([model]), keep_records=False)
    model.words |= dict.fromkeys(range(count), one)
    snapshot.save()
    assert bool(snapshot.added().parts) == searched
    model.words[-1] = one
    snapshot.restore()
    assert len(model.words) == count


def test_the_gradients_of_batches_are_restored():
    """As those of the points of a physics-informed network."""
    data = [(x.clone().requires_grad_(), y) for x, y in DATA]
    data[1][0].grad = torch.ones(8, 4)

    def energy(output, target):
        return squared(output, target)

    model, optimizer, loss = started(lambda: nn.Linear(4, 1), lambda: energy)
    range_test(model, optimizer, loss, data, iterations=20, lr_end=1e-2)
    assert [x.grad is None for x, _ in data] == [True, False, *[True] * 5]
    assert data[1][0].grad.tolist() == torch.ones(8, 4).tolist()


def test_what_a_loss_records_of_the_training_is_kept():
    class Recorder:
        def __init__(self):
            self.losses, self.modes, self.best = [], {}, {"loss": 9.0}
            self.latest, self.maxlen, self.rows = [torch.zeros(())], 1000, defaultdict(list)

        def loss(self, output, target):
            value = squared(output, target)
            self.losses.append(value.item())
            self.latest.insert(0, value.detach())
            self.rows["of the training"].append(value.item())
            self.modes[len(self.losses)] = torch.is_grad_enabled()
            self.best["loss"] = min(self.best["loss"], value.item())
            return value

    recorder = Recorder()
    with seeded(0):
        model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = measured(model, optimizer, recorder.loss, probe=HELD_OUT)
    assert recorder.losses == pytest.approx(losses)
    assert [value.item() for value in recorder.latest[-2::-1]] == recorder.losses
    # Numbers in a dictionary may be what a loss computes with.
    assert (recorder.modes, recorder.best) == ({}, {"loss": 9.0})
    assert recorder.rows["of the training"] == recorder.losses


@pytest.mark.parametrize("iterator", [itertools.count(), iter(DataLoader([1, 2]))])
@pytest.mark.parametrize("reader", ["loss", "hook"])
def test_an_iterator_that_a_function_reads_is_warned_of(iterator, reader):
    def loss(output, target):
        next(iterator, None)
        return squared(output, target)

    def hook(module, inputs):
        next(iterator, None)

    model = nn.Linear(4, 1)
    if reader == "hook":
        model.register_forward_pre_hook(hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=f"reads an iterator .{type(iterator).__name__}") as seen:
        measured(model, optimizer, loss if reader == "loss" else squared)
    assert seen[0].filename == __file__


def test_a_snapshot_is_saved_again():
    part = Unusual.Link()
    part.total, part.draws, part.rows = torch.zeros(3), random.Random(0), [1]
    snapshot = Snapshot(parts_of([part]))
    for count in range(3):
        part.total += 1
        part.rows.append(count)
        part.late = count
        snapshot.save()
        expected = part.draws.random()
        part.total.data = torch.ones(7)
        part.rows.clear()
        del part.late
        snapshot.restore()
        assert part.total.tolist() == [count + 1] * 3
        assert (part.rows, part.late) == ([1, *range(count + 1)], count)
        assert part.draws.random() == expected


def test_what_is_replaced_at_every_batch_is_not_kept_alive():
    class Hidden(nn.Module):
        hidden = torch.zeros(4)

    model = Hidden()
    evaluating = Evaluation([model])
    for count in range(30):
        model.hidden = torch.full((4,), float(count))
        with evaluating():
            model.hidden += 1
        assert model.hidden.tolist() == [count] * 4
    assert evaluating.first is not None
    assert sum(isinstance(part, torch.Tensor) for part in evaluating.first.parts.values()) <= 2


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, 6)[:, ::2],
        torch.zeros(3, 1).expand(3, 5),
        torch.zeros(7, dtype=torch.int8)[1:6],
        torch.zeros(4, dtype=torch.complex64).conj(),
        torch.zeros(0),
        torch.full((3,), torch.nan),
        torch.full((2,), -0.0),
    ],
)
def test_tensors_of_every_layout_are_restored_bit_for_bit(tensor):
    beside = torch.arange(9.0)
    before = tensor.resolve_conj().clone()
    model = nn.ParameterList([nn.Parameter(tensor, requires_grad=False), beside[1:4]])
    evaluating = Evaluation([model])
    for _ in range(2):
        with evaluating():
            tensor.data[..., :1] = 0
            tensor.data[..., :1] += 1
            beside += 1
        after = tensor.resolve_conj()
        assert torch.equal(torch.isnan(after), torch.isnan(before))
        if not tensor.is_complex():
            assert torch.equal(torch.signbit(after), torch.signbit(before))
        assert torch.equal(torch.nan_to_num(after), torch.nan_to_num(before))
    # What is not among the parts is left alone.
    assert beside.tolist() == [2, 1, 2, 3, 6, 7, 8, 9, 10]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_memory_that_may_not_be_written_is_left_alone(tmp_path):
    np.save(tmp_path / "values.npy", np.ones((4, 8), dtype="float32"))
    part = SimpleNamespace(all=np.load(tmp_path / "values.npy", mmap_mode="r"))
    part.tensor = torch.from_numpy(part.all)
    part.some, part.own = part.tensor[:, :3], torch.zeros(4, 8)[:, :3]
    snapshot = Snapshot(parts_of([part]))
    part.own += 1
    snapshot.restore()
    assert (part.some.sum(), part.own.sum()) == (12, 0)


def test_a_tensor_that_a_graph_refers_to_is_restored():
    class Accumulating(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.total, self.view = nn.Linear(4, 1), torch.zeros(()), torch.zeros(2)[0]
            self.graphs = []

        def forward(self, x):
            y = self.layer(x)
            self.total += y.mean()
            self.view += y.mean()
            self.graphs.append(self.total.square() + self.view.square())
            self.total.detach_()
            return y

    model = Accumulating()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    total, view = model.total, model.view
    range_test(model, optimizer, squared, DATA, iterations=10, lr_end=1e-3)
    assert (model.total, model.view) == (total, view)
    assert (total.item(), view.item(), total.is_leaf, len(model.graphs)) == (0, 0, True, 0)


def test_gradients_of_a_network_that_only_the_loss_knows_are_kept():
    teacher, (x, _) = nn.Linear(1, 1).eval(), DATA[0]
    teacher(x[:, :1]).sum().backward()
    before, kept = teacher.weight.grad, teacher.weight.grad.clone()

    def loss(output, target):
        return squared(output, target) + teacher(output).square().mean()

    model = nn.Linear(4, 1)
    measured(model, torch.optim.SGD(model.parameters(), lr=0.01), loss)
    assert teacher.weight.grad is before
    assert torch.equal(before, kept)


def test_the_type_of_a_tensor_is_restored():
    part = SimpleNamespace(tensor=torch.ones(3))
    snapshot = Snapshot(parts_of([part]))
    part.tensor.data = part.tensor.data.view(torch.int32)
    snapshot.restore()
    assert part.tensor.tolist() == [1.0] * 3


@pytest.mark.parametrize("step", [1, 2])
def test_the_sign_of_zero_is_restored(step):
    part = SimpleNamespace(tensor=torch.full((4, 6), -0.0)[:, ::step])
    snapshot = Snapshot(parts_of([part]))
    part.tensor.zero_()
    snapshot.restore()
    assert part.tensor.signbit().all()


def test_one_that_cannot_be_restored_does_not_keep_the_others_from_it():
    class Fixed(random.Random):
        def setstate(self, state):
            if hasattr(self, "ready"):
                raise RuntimeError("fixed")
            super().setstate(state)

    part = SimpleNamespace(first=torch.zeros(2), fixed=Fixed(0), last=torch.zeros(3), count=0)
    part.fixed.ready = True
    snapshot = Snapshot(parts_of([part]))
    part.first += 1
    part.last += 1
    part.count += 1
    with pytest.raises(RuntimeError, match="fixed"):
        snapshot.restore()
    assert (part.first.sum(), part.last.sum(), part.count) == (0, 0, 0)


def test_what_collates_and_transforms_starts_again():
    class Collate:
        count = 0

        def __call__(self, examples):
            self.count += 1
            return torch.tensor(examples).float()[:, None] * self.count

    collate = Collate()
    loader = DataLoader([1, 2, 3, 4], 2, collate_fn=collate)
    for _ in range(2):
        with preserved_sources(loader):
            assert [batch.sum().item() for batch in loader] == [3, 14]
    assert collate.count == 0
