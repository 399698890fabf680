import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lrrt_stage import Validation, digest, range_test, seeded
from lrrt_stage.state.preserve import preserved_sources
from lrrt_stage.state.weights import state_of

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, amsgrad=True),
}
cross_entropy = nn.functional.cross_entropy


class Setting:
    """A model with batch norm and dropout, its optimizer, and a loader with its own generator."""

    def __init__(self, optimizer="sgd", own_generator=True):
        with seeded(0):
            self.model = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
                nn.Flatten(), nn.Linear(144, 3),
            )  # fmt: skip
            x, y = torch.randn(40, 1, 8, 8), torch.randint(0, 3, (40,))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        generator = torch.Generator().manual_seed(1) if own_generator else None
        self.loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)

    def range_test(self, iterations=30, **options):
        return range_test(
            self.model, self.optimizer, cross_entropy, self.loader, iterations=iterations, **options
        )

    def train(self, epochs=2):
        self.model.train()
        for _ in range(epochs):
            for x, y in self.loader:
                # Noise from all three global generators.
                noise = random.random() + np.random.random() + torch.rand(())
                self.optimizer.zero_grad()
                cross_entropy(self.model(x + 0.01 * noise), y).backward()
                self.optimizer.step()
        return digest(self.model.state_dict())


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_after_a_range_test_is_bit_equal_to_training_without(optimizer, own_generator):
    results = []
    for with_test in (False, True):
        with seeded(7):
            setting = Setting(optimizer, own_generator)
            if with_test:
                assert len(setting.range_test()) > 15
            results.append(setting.train())
    assert results[0] == results[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_the_middle_of_training_the_optimizers_state_is_kept_too(optimizer):
    results = []
    for with_test in (False, True):
        with seeded(7):
            setting = Setting(optimizer)
            setting.train(epochs=1)
            if with_test:
                setting.range_test()
            results.append(setting.train(epochs=1))
    assert results[0] == results[1]


def everything(setting):
    model, optimizer = setting.model, setting.optimizer
    return {
        "weights": digest(state_of(model)),
        "memory": [tensor.data_ptr() for tensor in model.state_dict(keep_vars=True).values()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "options": [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ],
        "state": [
            {k: v.tolist() for k, v in optimizer.state[p].items()} if p in optimizer.state else None
            for p in model.parameters()
        ],
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "loader": setting.loader.generator.get_state().tolist(),
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", ["completes", "diverges", "raises", "ctrl-c", "bad loss"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_everything_is_as_it_was_however_the_test_ends(optimizer, how):
    setting = Setting(optimizer)
    setting.train(epochs=1)
    setting.model.eval()
    setting.model[0].train()
    setting.model[0].bias.requires_grad_(False)
    before = everything(setting)
    assert before["state"][0]
    assert before["gradients"][0]

    def progress(done, total):
        if done == 15 and how in ("raises", "ctrl-c"):
            raise Stop if how == "raises" else KeyboardInterrupt

    options = {"lr_end": 1e-3} if how == "completes" else {}
    if how == "bad loss":
        options["batch_loss"] = lambda batch: setting.model(batch[0])
    try:
        setting.range_test(progress=progress, **options)
        assert how in ("completes", "diverges")
    except (Stop, KeyboardInterrupt, ValueError):
        assert how in ("raises", "ctrl-c", "bad loss")
    assert everything(setting) == before


def test_a_fresh_optimizer_stays_without_state():
    setting = Setting("adam")
    setting.range_test()
    assert not setting.optimizer.state
    assert all(p.grad is None for p in setting.model.parameters())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_model_in_a_wrapper_is_left_as_found(wrap):
    model = wrap(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))).eval()
    before = digest(state_of(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    range_test(model, optimizer, cross_entropy, batches, iterations=10)
    assert digest(state_of(model)) == before
    assert not any(module.training for module in model.modules())


def test_submodules_and_parameters_that_a_model_adds_are_removed():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            self.added, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
            return self.layer(x) * self.scale

    model = Growing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    range_test(model, optimizer, cross_entropy, batches, iterations=10)
    assert sorted(model.state_dict()) == ["layer.bias", "layer.weight"]


def test_what_a_model_does_to_itself_is_undone():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("wide", torch.ones(1).expand(5))  # cannot be written to

        def forward(self, x):
            self.calls = self.calls + 1  # a new tensor each time
            self.frozen.requires_grad_(True)
            self.frozen.eval()
            return self.frozen(self.layer(x))

    model = Restless()
    calls = model.calls
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    range_test(model, optimizer, cross_entropy, batches, lr_end=1e-3, iterations=10)
    assert model.calls is calls
    assert calls.item() == 0
    assert not model.frozen.weight.requires_grad
    assert model.frozen.training


class Counting(nn.Module):
    """A model that keeps what Lightning modules and metrics keep: plain attributes."""

    def __init__(self):
        super().__init__()
        self.linear, self.frozen = nn.Linear(3, 2), nn.Parameter(torch.ones(2), requires_grad=False)
        self.calls, self.total, self.mean = 0, torch.zeros(()), torch.zeros(())
        self.outputs, self.seen, self.place = [], {}, torch.device("cpu")

    def forward(self, x):
        self.calls += 1
        self.total += 1  # in place
        self.mean = self.mean + 1
        self.outputs.append(x)
        self.seen["last"] = x
        self.place = torch.device("meta")  # as modules do that note where they are moved
        self.made_late = 1
        return self.linear(x)


def test_counters_lists_and_states_that_a_model_keeps_are_restored():
    model = Counting()
    before = dict(vars(model))
    calls = []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    range_test(
        model, optimizer, cross_entropy, batches, iterations=10, stop_multiple=None,
        progress=lambda *_: calls.append((model.calls, model.total.item(), len(model.outputs))),
    )  # fmt: skip
    assert calls[-1] == (10, 10.0, 10)  # it sees them grow: nothing is put back in between
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    assert (model.calls, model.total.item(), model.mean.item()) == (0, 0.0, 0.0)
    assert model.outputs == []
    assert model.seen == {}


class Refusing(dict):
    """As the outputs of transformers: a dict that is neither emptied nor filled."""

    def clear(self):
        raise TypeError("not supported")

    update = clear


class Curious(nn.Module):
    """A model with attributes of many kinds, some of which cannot be copied or written to."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(3, 2), nn.Dropout(0.1)
        self.adjacency = torch.eye(3).to_sparse()
        self.expanded = torch.full((1,), float("nan")).expand(4)
        self.shape = torch.empty(2, device="meta")
        self.output = Refusing(loss=1.0)
        self.ring, self.rate, self.seen = np.zeros(4), np.float64(0.5), {0}
        self.recent, self.pair, self.hooked = deque([0], maxlen=3), (0, 0), False
        self.cache, self.average = object(), torch.zeros(2)

    def forward(self, x):
        self.drop.p = min(0.9, self.drop.p + 0.05)
        self.ring[:] += 1
        self.rate, self.pair = self.rate * 2, (1, 1)
        self.seen.add(len(self.seen))
        self.recent.append(1)
        dict.clear(self.output)
        self.output = Refusing(loss=2.0)
        self.cache = None
        self.average.data += 1
        if not self.hooked:
            self.linear.register_forward_hook(lambda *_: None)
            self.hooked = True
        return self.linear(self.drop(self.adjacency @ x.T).T)


def test_attributes_of_any_kind_are_restored_and_never_cost_the_curve():
    model = Curious()
    before = dict(vars(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    curve = range_test(model, optimizer, cross_entropy, batches, iterations=10, stop_multiple=None)
    assert len(curve) == 10
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    assert model.output == Refusing(loss=1.0)
    assert model.average.tolist() == [0.0, 0.0]
    assert model.drop.p == 0.1
    assert (model.ring.tolist(), model.rate, model.pair) == ([0.0] * 4, 0.5, (0, 0))
    assert (model.seen, model.recent, model.recent.maxlen) == ({0}, deque([0]), 3)
    # The hook goes with the flag that guards it.
    assert not model.hooked
    assert not model.linear._forward_hooks


@pytest.mark.filterwarnings("ignore:the optimizer holds parameters")
def test_parameters_of_the_loss_are_restored_too():
    model, scale = nn.Linear(4, 2), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    range_test(
        model, optimizer, lambda output, y: cross_entropy(output * scale, y), batches, lr_end=1.0
    )
    assert scale.item() == 1.0
    assert scale.grad is None


def test_generators_of_sampler_and_dataset_are_restored():
    class Augmented(TensorDataset):
        rng = None

        def __getitem__(self, index):
            return self.tensors[0][index] + float(self.rng.normal()), self.tensors[1][index]

    data = Augmented(torch.randn(16, 4), torch.randint(0, 2, (16,)))
    data.rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.RandomSampler(data, generator=generator)
    before = generator.get_state(), data.rng.bit_generator.state
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    range_test(model, optimizer, cross_entropy, DataLoader(data, 4, sampler=sampler), iterations=10)
    assert torch.equal(generator.get_state(), before[0])
    assert data.rng.bit_generator.state == before[1]


@pytest.mark.parametrize("base", [torch.utils.data.Sampler, object])
def test_a_sampler_that_counts_its_passes_starts_again(base):
    class Counting(base):
        epoch = 0

        def __iter__(self):
            self.epoch += 1
            return iter(torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch)))

        def __len__(self):
            return 12

    sampler = Counting()
    batches = DataLoader(Noisy(), 4, sampler=sampler)
    assert linear_range_test(batches) == linear_range_test(batches)
    assert sampler.epoch == 0


def test_processes_that_start_meanwhile_are_kept():
    data = TensorDataset(torch.randn(16, 4))
    loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
    with preserved_sources(loader):
        next(iter(loader))
        started = loader._iterator
    assert loader._iterator is started is not None


class Noisy(Dataset):
    """Twelve points; the noise comes from ``draw``, or from torch's global state."""

    def __init__(self, draw=None):
        self.draw = draw

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.rand(4) if self.draw is None else float(self.draw(index))
        return torch.full((4,), index / 12) + noise, index % 2


def linear_range_test(batches, **options):
    with seeded(0):
        model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return range_test(model, optimizer, cross_entropy, batches, iterations=10, **options)


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_persistent_processes_draw_what_they_would_have_drawn(epochs_before, own_generator):
    def read(with_test):
        with seeded(3):
            generator = torch.Generator().manual_seed(5) if own_generator else None
            loader = DataLoader(
                Noisy(), 4, shuffle=True, generator=generator, num_workers=1,
                persistent_workers=True,
            )  # fmt: skip
            seen = [x for _ in range(epochs_before) for x, _ in loader]
            if with_test:
                linear_range_test(loader)
            return torch.cat([*seen, *(x for _ in range(2) for x, _ in loader)])

    assert torch.equal(read(with_test=False), read(with_test=True))


def test_an_epoch_that_persistent_processes_are_reading_continues():
    def read(with_test):
        with seeded(3):
            loader = DataLoader(Noisy(), 4, num_workers=1, persistent_workers=True)
            epoch = iter(loader)
            seen = [next(epoch)[0]]
            if with_test:
                linear_range_test(loader)
            return torch.cat([*seen, *(x for x, _ in epoch)])

    assert torch.equal(read(with_test=False), read(with_test=True))


class Jitter:
    def __init__(self, generator):
        self.generator = generator

    def __call__(self, index):
        if isinstance(self.generator, torch.Generator):
            return torch.rand((), generator=self.generator)
        return self.generator.random()


class Chain:
    def __init__(self, *transforms):
        self.transforms = list(transforms)

    def __call__(self, index):
        return sum(float(transform(index)) for transform in self.transforms)


class Wrapper:
    """Batches that know more than their loader, without being one."""

    def __init__(self, loader):
        self.loader, self.itself = loader, self

    def __iter__(self):
        return iter(self.loader)


MAKERS = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "numpy": lambda: np.random.default_rng(0),
    "legacy numpy": lambda: np.random.RandomState(0),
    "python": lambda: random.Random(0),
}
PLACES = {
    "dataset": lambda draw: DataLoader(Noisy(draw), 4),
    "chain of transforms": lambda draw: DataLoader(Noisy(Chain(len_of, draw)), 4),
    "subset": lambda draw: DataLoader(Subset(Noisy(draw), range(12)), 4),
    "part of a concatenation": lambda draw: DataLoader(
        ConcatDataset([Noisy(draw), Noisy(draw)]), 4
    ),
    "wrapper, loader, subset, subset, chain": lambda draw: Wrapper(
        DataLoader(Subset(Subset(Noisy(Chain(draw)), range(12)), range(12)), 4)
    ),
}


def len_of(index):
    return index


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_generator_is_restored_wherever_it_is(kind, place):
    generator, untouched = MAKERS[kind](), MAKERS[kind]()
    linear_range_test(PLACES[place](Jitter(generator)))
    assert Jitter(generator)(0) == Jitter(untouched)(0)


def test_the_generator_of_a_loader_in_a_wrapper_is_restored():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    linear_range_test(Wrapper(DataLoader(Noisy(), 4, shuffle=True, generator=generator)))
    assert torch.equal(generator.get_state(), before)


def test_the_generator_of_the_validation_is_restored():
    generator = np.random.default_rng(0)
    full = DataLoader(Noisy(Jitter(generator)), 4)
    sample = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    linear_range_test(DataLoader(Noisy(), 4), validation=Validation(sample, full, 3))
    assert generator.random() == np.random.default_rng(0).random()


class LearnedLoss(nn.Module):
    """Cross entropy with a scale that could be learned, which counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))
        # Of the class: a list of the module's own is put back.
        type(self).moved_to = []

    def forward(self, output, target):
        self.calls += 1
        return cross_entropy(output * self.scale, target)

    def to(self, device):
        self.moved_to.append(str(device))
        return super().to(device)


class BatchLoss(LearnedLoss):
    def forward(self, batch):
        return super().forward(torch.stack([batch[0].sum(1), batch[0][:, 0]], 1), batch[1])


@pytest.mark.parametrize("given", ["loss_fn", "batch_loss", "validation"])
def test_a_loss_that_is_a_module_is_moved_and_restored(given):
    loss = LearnedLoss() if given == "loss_fn" else BatchLoss()
    loss.scale.grad = torch.tensor(7.0)
    model = nn.Linear(4, 2)
    calls, gradient = loss.calls, loss.scale.grad
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    options = {"validation": Validation(batches, batch_loss=loss)} if given == "validation" else {}
    range_test(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss if given == "loss_fn" else cross_entropy,
        batches,
        batch_loss=loss if given == "batch_loss" else None,
        iterations=10,
        device="cpu",
        **options,
    )
    assert loss.moved_to == ["cpu"]
    assert loss.calls is calls
    assert calls.item() == 0
    assert loss.scale.grad is gradient
    assert gradient.item() == 7.0


@pytest.mark.gpu
def test_a_loss_that_is_a_module_is_on_the_device_during_the_test():
    loss = LearnedLoss()
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    assert len(range_test(model, optimizer, loss, batches, iterations=10, device="cuda")) == 10
    assert loss.scale.device.type == "cpu"


@pytest.mark.gpu
def test_a_model_that_is_moved_for_the_test_comes_back_unchanged():
    setting = Setting("adamw")
    setting.train(epochs=1)
    before = everything(setting) | {"cuda": torch.cuda.get_rng_state().tolist()}
    setting.range_test(device="cuda")
    assert everything(setting) | {"cuda": torch.cuda.get_rng_state().tolist()} == before


@pytest.fixture
def group():
    """A process group of one, in which DDP and FSDP work as in any other."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class LastOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.output = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.output(self.lstm(x)[0][:, -1])


def sequences():
    return [(torch.randn(8, 5, 3), torch.randint(0, 2, (8,))) for _ in range(4)]


def test_an_lstm_that_keeps_what_fsdp_has_freed_can_be_evaluated(group):
    """Its list of weights holds the parameters that were gathered for a forward pass."""
    with seeded(0):
        batches = sequences()
        models = [LastOutput(), LastOutput()]
    models[1].load_state_dict(models[0].state_dict())
    fully_shard(models[1])
    curves = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"probe": batches[0], "iterations": 30, "lr_end": 1.0}
        curves.append(range_test(model, optimizer, cross_entropy, batches, **options))
    for name in ("loss", "probe_loss"):
        alone, shared = (getattr(curve, name) for curve in curves)
        assert np.allclose(alone, shared, rtol=1e-4, equal_nan=True)


def test_gradients_that_ddp_holds_in_its_buckets_are_restored(group):
    with seeded(0):
        batches, model = sequences(), LastOutput()
    model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches[:2]:  # from the second step on, they are views
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    range_test(model, optimizer, cross_entropy, batches, iterations=30)
    assert all(map(torch.equal, before, (parameter.grad for parameter in model.parameters())))
