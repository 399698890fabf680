import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrrt_stage import digest, range_test, seeded
from lrrt_stage.weights import state_of

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

    def range_test(self, **options):
        return range_test(self.model, self.optimizer, cross_entropy, self.loader, **options)

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
                assert len(setting.range_test()) > 20
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


def test_parameters_of_the_loss_are_put_back_too():
    model, scale = nn.Linear(4, 2), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    range_test(
        model, optimizer, lambda output, y: cross_entropy(output * scale, y), batches, lr_end=1.0
    )
    assert scale.item() == 1.0
    assert scale.grad is None


def test_generators_of_sampler_and_dataset_are_put_back():
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


@pytest.mark.gpu
def test_a_model_that_is_moved_for_the_test_comes_back_unchanged():
    setting = Setting("adamw")
    setting.train(epochs=1)
    before = everything(setting) | {"cuda": torch.cuda.get_rng_state().tolist()}
    setting.range_test(device="cuda")
    assert everything(setting) | {"cuda": torch.cuda.get_rng_state().tolist()} == before
