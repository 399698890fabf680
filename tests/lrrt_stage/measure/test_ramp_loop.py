import hashlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lrrt_stage import (
    LRRTError,
    RangeTestInterrupted,
    RangeTestOptions,
    Smoothing,
    Validation,
    digest,
    initialize,
    range_test,
    seeded,
)
from lrrt_stage.measure.loss_recorder import CHECK_EVERY

mse = nn.functional.mse_loss


def scalar(weight=1.0):
    """The model w x, without bias: small enough to compute by hand."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def batch(x, y):
    return torch.tensor([[float(x)]]), torch.tensor([[float(y)]])


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def classifier(seed=0, dropout=0.0):
    with seeded(seed):
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        )


def loader(n=64, batch_size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    shuffle = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True, generator=shuffle)


def run(model=None, batches=None, **options):
    model = model or classifier()
    cross_entropy = nn.functional.cross_entropy
    batches = loader() if batches is None else batches
    return range_test(model, sgd(model), cross_entropy, batches, **options)


def test_loss_i_is_that_of_batch_i_before_the_step_that_uses_lr_i():
    # Loss (w x - y)², gradient 2 x (w x - y), on batches (1, 0), (2, 1), (1, 3) again and again.
    batches = [batch(1, 0), batch(2, 1), batch(1, 3)]
    model = scalar(1.0)
    curve = range_test(
        model, sgd(model), mse, batches, lr_start=0.01, lr_end=0.1, ramp="linear", iterations=10
    )
    weight, losses = 1.0, []
    for i in range(10):
        x, y = [(1, 0), (2, 1), (1, 3)][i % 3]
        losses.append((weight * x - y) ** 2)
        weight -= (0.01 * (i + 1)) * 2 * x * (weight * x - y)
    assert np.allclose(curve.lr, 0.01 * np.arange(1, 11), rtol=1e-12)
    assert np.allclose(curve.loss, losses, rtol=1e-5)
    # The first two, in full: 1² = 1; w = 1 - 0.01 · 2 = 0.98; (1.96 - 1)² = 0.9216.
    assert curve.loss[0] == 1.0
    assert curve.loss[1] == pytest.approx(0.9216, rel=1e-6)


def test_defaults_are_an_exponential_ramp_from_1e_7_to_100_and_a_stop_at_4():
    options = RangeTestOptions()
    assert (options.lr_start, options.lr_end, options.ramp) == (1e-7, 100.0, "exponential")
    assert (options.iterations, options.stop_multiple) == (100, 4.0)


@pytest.mark.parametrize(("n", "iterations"), [(64, 100), (1200, 150)])
def test_one_epoch_but_at_least_100_iterations(n, iterations):
    curve = run(batches=loader(n), lr_end=1e-3, iterations="epoch")
    assert len(curve) == iterations
    assert curve.epochs == iterations / (n / 8)
    assert curve.stop == "completed"


def test_data_without_a_length_has_an_epoch_of_100_iterations():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(loader().dataset)

    curve = run(batches=DataLoader(Stream(), 8), lr_end=1e-3, iterations="epoch")
    assert len(curve) == 100
    assert curve.epochs is None


def test_a_further_pass_over_the_data_is_reshuffled():
    seen = []
    batches = loader(32)

    def batch_loss(pair):
        seen.append(pair[1].tolist())
        return model(pair[0]).square().mean()

    model = classifier()
    range_test(model, sgd(model), None, batches, batch_loss=batch_loss, lr_end=1e-6, iterations=12)
    epochs = [sum(seen[i : i + 4], []) for i in (0, 4, 8)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_param_groups_keep_the_ratio_of_their_learning_rates():
    model = nn.Sequential(scalar(1.0), scalar(1.0))
    used = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            used.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": model[1].parameters(), "lr": 0.2},
    ]
    curve = range_test(model, Spy(groups, lr=1.0), mse, [batch(1, 0)], lr_end=1e-3, iterations=10)
    assert np.allclose([high for _, high in used], curve.lr, rtol=1e-12)
    assert np.allclose([low / high for low, high in used], 0.1, rtol=1e-12)


def test_a_learning_rate_that_is_a_tensor_is_moved_in_place_and_restored():
    model = scalar()
    lr = torch.tensor(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    range_test(model, optimizer, mse, [batch(1, 0)], lr_end=1e-3, iterations=10)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_accumulation_is_the_mean_over_the_steps_batches():
    # Two batches a step, losses (w - 0)² and (w - 3)², gradient of the mean 2 w - 3.
    model = scalar(1.0)
    curve = range_test(
        model, sgd(model), mse, [batch(1, 0), batch(1, 3)],
        lr_start=0.1, lr_end=0.2, ramp="linear", iterations=11, accumulate=2,
    )  # fmt: skip
    assert curve.loss[0] == (1 + 4) / 2
    weight = 1.0 - 0.1 * (2 * 1.0 - 3)
    assert curve.loss[1] == pytest.approx((weight**2 + (weight - 3) ** 2) / 2, rel=1e-6)
    assert curve.epochs == 11


def test_gradients_are_clipped_by_norm():
    # Gradient 2 · 10 · 10 = 200 at w = 1 is clipped to 0.5: the step is 0.1 · 0.5.
    model = scalar(1.0)
    curve = range_test(
        model, sgd(model), mse, [batch(10, 0)],
        lr_start=0.1, lr_end=0.2, ramp="linear", iterations=10, clip_norm=0.5,
    )  # fmt: skip
    assert curve.loss[0] == 100.0
    assert curve.loss[1] == pytest.approx((10 * 0.95) ** 2, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_computes_in_lower_precision_and_keeps_the_shape_of_the_curve(precision):
    exact, rounded = run(lr_end=10), run(lr_end=10, precision=precision)
    assert exact.loss[0] != rounded.loss[0]
    assert np.allclose(exact.loss[:60], rounded.loss[:60], rtol=0.05)


def test_fp16_scales_the_loss_so_that_small_gradients_are_not_lost():
    # In fp16 the gradient of the layer's output, 1e-8, is 0 unless the loss is scaled before
    # backward. The weight itself, and so its gradient, are fp32.
    def tiny(pair):
        return model(pair).float().mean() * 1e-8

    model = scalar(1.0)
    batches = [torch.tensor([[1.0]])]
    curve = range_test(
        model, sgd(model), None, batches, batch_loss=tiny, precision="fp16",
        lr_start=1e6, lr_end=1e7, iterations=10, stop_multiple=None,
    )  # fmt: skip
    assert curve.loss[-1] < 0.99 * curve.loss[0]


def test_channels_last_reaches_model_and_images():
    model = nn.Conv2d(3, 4, 3)
    layouts = []

    def batch_loss(images):
        layouts.append(
            images.is_contiguous(memory_format=torch.channels_last)
            and model.weight.is_contiguous(memory_format=torch.channels_last)
        )
        return model(images).square().mean()

    images = [torch.randn(2, 3, 8, 8)]
    stride = model.weight.stride()
    range_test(
        model, sgd(model), None, images, batch_loss=batch_loss, iterations=10, lr_end=1e-3,
        channels_last=True,
    )  # fmt: skip
    assert layouts == [True] * 10
    assert model.weight.stride() == stride


def test_it_stops_when_the_smoothed_loss_rises_by_a_multiple_of_the_spread():
    curve = run(stop_multiple=3.0, smoothing=Smoothing(beta=0.9))
    assert curve.stop == "diverged"
    # By the definition, on all losses but the last: never passed; with the last: passed.
    smoothed, passed, beta = [], [], 0.9
    mean, start = 0.0, np.median(curve.loss[:10])
    for t, loss in enumerate(curve.loss, start=1):
        mean = beta * mean + (1 - beta) * (start if t <= 10 else loss)
        smoothed.append(mean / (1 - beta**t))
        spread = sorted(abs(curve.loss[:t] - start))[int(0.9 * (t - 1))]
        limit = min(smoothed) + (3.0 - 1) * spread
        passed.append(t > 10 and min(smoothed[-1], *curve.loss[t - 2 : t]) > limit)
    assert passed[-1]
    assert not any(passed[:-1])


def test_where_it_stops_does_not_depend_on_how_often_it_looks(monkeypatch):
    often = run()
    assert often.stop == "diverged"
    monkeypatch.setattr("lrrt_stage.measure.loss_recorder.CHECK_EVERY", 1)
    assert run() == often


def test_the_stop_can_be_switched_off():
    curve = run(stop_multiple=None, lr_end=1.0)
    assert (len(curve), curve.stop) == (100, "completed")


def test_it_stops_at_the_first_loss_that_is_not_finite_and_keeps_it():
    count = iter(range(1000))

    def batch_loss(pair):
        scale = float("nan") if next(count) == 33 else 1.0
        return model(pair[0]).square().mean() * scale

    model = classifier()
    curve = range_test(model, sgd(model), None, loader(), batch_loss=batch_loss, lr_end=1e-3)
    assert curve.stop == "non-finite"
    assert len(curve) == 34
    assert np.isnan(curve.loss[-1])
    assert np.isfinite(curve.loss[:-1]).all()


def test_tests_in_threads_take_turns():
    running = []

    def losses(model):
        def progress(done, total):
            running.append(model)

        return run(model, progress=progress, iterations=20, stop_multiple=None).loss

    state = torch.get_rng_state()
    models = [classifier(dropout=0.5) for _ in range(6)]
    with ThreadPoolExecutor(3) as threads:
        curves = list(threads.map(losses, models))
    assert len(list(itertools.groupby(map(id, running)))) == len(models)
    assert all(np.array_equal(curve, curves[0]) for curve in curves)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_ctrl_c_hands_back_the_curve_so_far():
    def progress(done, total):
        if done == 23:
            raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(progress=progress)
    assert isinstance(caught.value, RangeTestInterrupted)
    assert caught.value.curve.stop == "interrupted"
    assert np.array_equal(caught.value.curve.loss, whole.loss[:23])


def test_progress_is_told_after_every_iteration():
    told = []
    run(iterations=25, lr_end=1e-3, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 25) for i in range(1, 26)]


class _HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: scalar reads and copies to the CPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        options = kwargs or {}
        # A copy that also changes the type is autocast's, which stays on the device.
        to_cpu = name == "_to_copy" and str(options.get("device")) == "cpu"
        to_cpu = to_cpu and options.get("dtype") in (None, args[0].dtype)
        # One that does not block is the scaler's, from the device to itself.
        to_cpu = to_cpu and not options.get("non_blocking")
        self.count += name in ("_local_scalar_dense", "nonzero", "is_nonzero") or to_cpu
        return func(*args, **(kwargs or {}))


def test_the_counter_sees_a_scalar_read():
    with _HostReads() as reads:
        torch.ones(()).item()
        torch.ones(3).to("cpu", copy=True)
    assert reads.count == 2


VALIDATION = Validation([(torch.ones(4, 8), torch.zeros(4, dtype=torch.long))])


def reads_between_first_and_last(iterations, fused=None, **options):
    model = classifier()
    batches = [(torch.randn(8, 8), torch.randint(0, 3, (8,))) for _ in range(10)]
    counts = []

    def progress(done, total):
        counts.append(reads.count)

    with _HostReads() as reads:
        range_test(
            model, sgd(model, fused=fused), nn.functional.cross_entropy, batches,
            iterations=iterations, lr_end=1e-2, progress=progress, **options,
        )  # fmt: skip
    assert reads.count > 0
    return counts[-1] - counts[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_norm": 1.0},
        {"precision": "bf16"},
        {"precision": "fp16", "fused": True},
        {"precision": "fp16", "fused": True, "clip_norm": 1.0},
        {"validation": VALIDATION},
    ],
)
def test_the_loop_does_not_wait_for_the_device_at_every_step(options):
    # The losses are read every CHECK_EVERY iterations, and nothing else is.
    assert reads_between_first_and_last(60, **options) <= 60 // CHECK_EVERY


def test_fp16_waits_for_the_device_where_the_optimizer_is_not_fused():
    # The limit that StepOptions names: the scaler of an unfused optimizer reads at every step.
    assert reads_between_first_and_last(20, precision="fp16") >= 19


def digest_of_a_curve():
    torch.set_num_threads(1)
    model = classifier(dropout=0.5)
    initialize(model, "kaiming_uniform", 3)
    with seeded(3):
        curve = run(model)
    values = curve.loss.tobytes() + curve.lr.tobytes()
    return digest(model.state_dict()) + hashlib.sha256(values).hexdigest()


def test_the_same_seeds_give_the_same_weights_and_curve_in_another_process():
    name = "tests.lrrt_stage.measure.test_ramp_loop"
    script = f"from {name} import digest_of_a_curve; print(digest_of_a_curve())"
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest_of_a_curve()


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_curve_on_the_gpu():
    model = classifier(dropout=0.5)
    curves = []
    for _ in range(2):
        with seeded(3):
            curves.append(run(model, device="cuda"))
    assert curves[0] == curves[1]
    assert next(model.parameters()).device.type == "cpu"


def _average_over_ranks(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    # The first rank's loss explodes, the second's never would: both must stop, at the same place.
    model = scalar(1.0 if rank == 0 else 0.0)
    target = 5.0 if rank == 0 else 0.0
    batches = [batch(1, target), batch(2, -target)]
    curve = range_test(model, sgd(model), mse, batches, lr_start=0.01)
    torch.save((curve.loss.tolist(), curve.stop), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_all_ranks_of_a_distributed_run_stop_together(tmp_path):
    torch.multiprocessing.spawn(_average_over_ranks, (str(tmp_path),), nprocs=2)
    first, second = torch.load(tmp_path / "0"), torch.load(tmp_path / "1")
    assert first == second
    assert first[1] == "diverged"
    assert first[0][0] == 8.0  # the mean of 16 and 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_start": 1.0, "lr_end": 0.1}, "lr_end=0.1"),
        ({"lr_start": 1.0, "lr_end": 1.0}, "lr_end=1"),
        ({"lr_start": 0.0}, "lr_start=0"),
        ({"lr_start": float("inf")}, "lr_start=inf"),
        ({"lr_end": -1.0}, "lr_end=-1"),
        ({"lr_end": float("nan")}, "lr_end=nan"),
        ({"lr_end": float("inf")}, "lr_end=inf"),
        ({"iterations": 9}, "iterations=9"),
        ({"iterations": "epochs"}, "iterations='epochs'"),
        ({"stop_multiple": 1.0}, "stop_multiple=1.0"),
        ({"ramp": "cubic"}, "'cubic'"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"precision": "fp61"}, "'fp16'"),
        ({"lr_ned": 1.0}, "'lr_end'"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"device": "gpu"}, "'gpu'"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(LRRTError) as error:
        run(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_trainable_parameters_is_refused():
    model = classifier().requires_grad_(False)
    with pytest.raises(LRRTError, match="no trainable parameter"):
        run(model)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(LRRTError, match="no trainable parameter"):
        range_test(nn.ReLU(), optimizer, mse, [batch(1, 0)])


class Unbuilt(nn.Module):
    """Makes its parameter when it first sees a batch."""

    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(x.shape[1:]))
        return (x * self.scale).sum(dim=1, keepdim=True)


def test_a_model_that_makes_its_parameters_later_is_told_to_run_first():
    model, optimizer = Unbuilt(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(LRRTError, match="first run a batch"):
        range_test(model, optimizer, mse, [batch(1, 0)])
    model(batch(1, 0)[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(range_test(model, optimizer, mse, [batch(1, 0)], lr_end=1e-3)) == 100


def test_a_first_loss_that_is_not_finite_is_refused():
    with pytest.raises(LRRTError, match="first batch is nan"):
        range_test((model := scalar()), sgd(model), mse, [batch(float("nan"), 0)])


class Once:
    """Batches that can be iterated once only, which is not to be seen before."""

    def __init__(self):
        self.left = iter([batch(1, 0)] * 15)

    def __iter__(self):
        return self.left


@pytest.mark.parametrize("batches", [[], Once()])
def test_batches_that_run_out_are_named(batches):
    model = scalar()
    with pytest.raises(LRRTError, match="no batches left"):
        range_test(model, sgd(model), mse, batches, lr_end=1e-3)


@pytest.mark.parametrize(
    "batches",
    [
        iter([batch(1, 0)]),
        itertools.cycle([batch(1, 0)]),
        (each for each in [batch(1, 0)]),
        zip([1], [2], strict=True),
        iter(DataLoader([batch(1, 0)], batch_size=None)),
        {"x": batch(1, 0)},
        torch.ones(3, 1),
        "abc",
    ],
)
def test_an_iterator_or_a_single_batch_is_refused_and_not_read(batches):
    model = scalar()
    with pytest.raises(LRRTError, match="batches is .*: pass a DataLoader or a list of batches"):
        range_test(model, sgd(model), mse, batches, lr_end=1e-3)
    assert not isinstance(batches, Iterator) or next(batches) is not None


def test_a_loader_of_ones_own_starts_again():
    class Epochs:
        def __init__(self):
            self.epoch, self.seen = 0, []

        def __iter__(self):
            self.epoch += 1
            self.seen.append(self.epoch)
            return iter([batch(1, 0)] * 5)

    batches = Epochs()
    range_test((model := scalar()), sgd(model), mse, batches, lr_end=1e-3)
    assert (batches.epoch, batches.seen) == (0, [])


def test_a_misspelt_argument_is_named():
    with pytest.raises(LRRTError, match="did you mean 'probe'"):
        run(probes=batch(1, 0))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("call first_step and second_step instead"), "needs a closure"),
        (Exception("Optimizer was not in train mode when step is called"), "optimizer.train"),
    ],
)
def test_a_step_that_cannot_be_taken_is_explained(error, words):
    class Other(torch.optim.SGD):
        def step(self, closure=None):
            raise error

    model = scalar()
    with pytest.raises(LRRTError, match=words):
        range_test(model, Other(model.parameters(), lr=0.1), mse, [batch(1, 0)])


def test_a_loss_that_is_no_scalar_is_named():
    with pytest.raises(LRRTError, match=r"the loss is Tensor of torch.float32 \[8, 3\]"):
        range_test(
            (model := classifier()), sgd(model), None, loader(), batch_loss=lambda b: model(b[0])
        )


def test_a_loss_that_depends_on_no_parameter_is_named():
    model = classifier()
    with pytest.raises(LRRTError, match="requires_grad"):
        range_test(
            model, sgd(model), None, loader(), batch_loss=lambda b: model(b[0]).mean().detach()
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(3)),
        lambda: nn.Sequential(nn.Linear(8, 3), nn.LazyBatchNorm1d(affine=False)),
    ],
)
def test_a_lazy_model_is_refused_until_it_has_shapes(make):
    model = make()
    with pytest.raises(LRRTError, match=r"'1\.\w+' without a shape") as error:
        run(model)
    assert "\n" not in str(error.value)
    model(torch.zeros(8, 8))
    assert len(run(model, lr_end=1e-3)) == 100


def test_an_optimizer_that_needs_a_closure_is_refused():
    model = classifier()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(LRRTError, match="LBFGS.*closure") as error:
        range_test(model, optimizer, nn.functional.cross_entropy, loader())
    assert "\n" not in str(error.value)


class Sharpness(torch.optim.SGD):
    """Needs a closure, which its signature does not say."""

    def step(self, closure=None):
        assert closure is not None, "requires closure, but it was not provided"


class CallsClosure(torch.optim.SGD):
    def step(self, closure=None):
        return closure()


class InTwoSteps(torch.optim.SGD):
    def step(self, closure=None):
        raise NotImplementedError("call first_step and second_step")


class OfALoss(torch.optim.SGD):
    def step(self, loss_of):
        return loss_of()


@pytest.mark.parametrize("kind", [Sharpness, CallsClosure, InTwoSteps, OfALoss])
def test_an_optimizer_that_needs_a_closure_at_its_first_step_is_refused(kind):
    model = classifier()
    before = digest(model.state_dict())
    optimizer = kind(model.parameters(), lr=0.1)
    with pytest.raises(LRRTError, match=f"{kind.__name__}.*closure.*AdamW") as error:
        range_test(model, optimizer, nn.functional.cross_entropy, loader())
    assert "\n" not in str(error.value)
    assert digest(model.state_dict()) == before


@pytest.mark.parametrize("message", ["broken", "f() missing 1 required positional argument: 'x'"])
def test_another_error_of_an_optimizer_is_passed_on(message):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise TypeError(message)

    model = classifier()
    with pytest.raises(TypeError, match=re.escape(message)):
        range_test(model, Broken(model.parameters()), nn.functional.cross_entropy, loader())


@pytest.mark.parametrize("lr", [None, "absent", "0.1", float("nan"), -1.0, torch.ones(2)])
def test_an_optimizer_without_a_learning_rate_is_refused(lr):
    model = classifier()
    optimizer = sgd(model)
    optimizer.param_groups[0]["lr"] = lr
    if isinstance(lr, str) and lr == "absent":
        del optimizer.param_groups[0]["lr"]
    with pytest.raises(LRRTError, match=r"group 0 of SGD has lr=.*such as lr=0.1") as error:
        range_test(model, optimizer, None, [], batch_loss=lambda batch: 1 / 0)
    assert "\n" not in str(error.value)


def frozen_model():
    """A backbone that is kept in evaluation mode, and a head."""
    backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
    return nn.Sequential(backbone.requires_grad_(False).eval(), nn.Linear(16, 3))


@pytest.mark.parametrize("watched", [False, True])
def test_submodules_in_evaluation_mode_stay_in_it_in_every_step(watched):
    with seeded(0):
        model = frozen_model()
    modes = []

    def batch_loss(pair):
        if torch.is_grad_enabled():
            modes.append([module.training for module in model.modules()])
        else:
            assert not any(module.training for module in model.modules())
        return nn.functional.cross_entropy(model(pair[0]), pair[1])

    x, y = next(iter(loader()))
    expected = nn.functional.cross_entropy(model[1](model[0](x)), y).item()
    options = {"probe": (x, y), "validation": Validation([(x, y)])} if watched else {}
    curve = range_test(
        model, sgd(model), None, [(x, y)], batch_loss=batch_loss, iterations=10, **options
    )
    assert curve.loss[0] == pytest.approx(expected)
    assert modes == [[True, False, False, False, False, True]] * 10
    assert [module.training for module in model.modules()] == modes[0]


def test_a_model_that_is_all_in_evaluation_mode_is_trained():
    model = classifier().eval()
    modes = []

    def batch_loss(pair):
        modes.append([module.training for module in model.modules()])
        return model(pair[0]).square().mean()

    range_test(model, sgd(model), None, loader(), batch_loss=batch_loss, iterations=10)
    assert modes == [[True] * 6] * 10
    assert not any(module.training for module in model.modules())


class Teacher(nn.Module):
    """A network with a mode and running statistics, which a loss function calls."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def distilled(model, teacher):
    def batch_loss(pair):
        return mse(model(pair[0]), teacher(pair[0]))

    return batch_loss


def test_further_modules_are_restored_and_evaluated_like_a_loss_that_is_a_module():
    model, teacher = classifier(), Teacher()
    before = digest(teacher.state_dict())
    optimizer = torch.optim.SGD([*model.parameters(), *teacher.parameters()], lr=0.1)
    modes = Mock()  # of what Python's own packages hold, nothing is restored

    def batch_loss(pair):
        modes(torch.is_grad_enabled(), teacher.training, teacher.layers[2].training)
        return mse(model(pair[0]), teacher(pair[0]))

    curves = []
    for probe in (None, next(iter(loader(seed=5)))):
        with seeded(0):
            curves.append(
                range_test(
                    model, optimizer, None, loader(), batch_loss=batch_loss, modules=[teacher],
                    probe=probe, iterations=15, lr_end=0.1,
                )
            )  # fmt: skip
    assert np.array_equal(curves[0].loss, curves[1].loss)
    assert {each.args for each in modes.mock_calls} == {(True, True, True), (False, False, False)}
    assert digest(teacher.state_dict()) == before
    assert teacher.layers.training


@pytest.mark.filterwarnings("error")
def test_modules_that_are_given_or_known_are_not_warned_of():
    model, teacher = classifier(), Teacher().eval()
    arguments = (model, sgd(model), None, loader())
    loss = distilled(model, teacher)
    range_test(*arguments, batch_loss=loss, modules=teacher, iterations=10)
    model[0].teacher = teacher
    range_test(*arguments, batch_loss=loss, iterations=10)
    norm = nn.CrossEntropyLoss()  # without parameters or buffers: there is nothing to restore
    range_test(model, sgd(model), lambda out, y: norm(out, y), loader(), iterations=10)


TEACHER = Teacher()


class Losses:
    def __init__(self):
        self.teachers = [Teacher()]

    def distilled(self, model, pair):
        return mse(model(pair[0]), self.teachers[0](pair[0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: distilled(model, Teacher()),
        lambda model: partial(lambda *two: mse(model(two[1][0]), two[0](two[1][0])), Teacher()),
        lambda model: partial(Losses().distilled, model),
        lambda model: lambda pair: mse(model(pair[0]), TEACHER(pair[0])),
    ],
)
def test_a_network_that_only_the_loss_knows_is_warned_of(make):
    model = classifier()
    with pytest.warns(UserWarning, match=r"calls a Teacher outside the model.*modules=") as caught:
        range_test(model, sgd(model), None, loader(), batch_loss=make(model), iterations=10)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)


def test_parameters_that_are_not_the_models_are_warned_of():
    model, teacher = classifier(), Teacher()
    optimizer = torch.optim.SGD([*model.parameters(), *teacher.parameters()], lr=0.1)
    with pytest.warns(UserWarning, match=r"holds parameters \(4\) outside the model"):
        range_test(model, optimizer, nn.functional.cross_entropy, loader(), iterations=10)


def test_what_is_no_module_is_refused():
    with pytest.raises(LRRTError, match="one of modules is str"):
        run(modules=["teacher"])


def test_an_optimizer_of_another_model_is_refused():
    """As in a notebook, where the model was made again and the optimizer was not."""
    model, before = nn.Linear(4, 2), nn.Linear(4, 2)
    optimizer = torch.optim.SGD(before.parameters(), lr=0.1)
    batches = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(LRRTError, match="none of this model"):
        range_test(model, optimizer, nn.functional.cross_entropy, batches)


LOADER = loader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": nn.Linear}, "the model is the class Linear"),
        ({"optimizer": torch.optim.SGD}, "the optimizer is the class SGD"),
        ({"optimizer": [sgd(scalar())]}, "the optimizer is list of .SGD"),
        ({"loss_fn": nn.CrossEntropyLoss}, "loss_fn is the class CrossEntropyLoss"),
        ({"loss_fn": "mse"}, "loss_fn is str"),
        ({"batch_loss": nn.CrossEntropyLoss}, "batch_loss does not take"),
        ({"batch_loss": "mse"}, "batch_loss does not take .*'str' object is not callable"),
        ({"batches": LOADER.dataset}, "batches is TensorDataset: pass a DataLoader"),
        ({"batches": DataLoader}, "batches is the class DataLoader"),
        ({"batches": loader}, "batches is function"),
        ({"batches": None}, "batches is None"),
        ({"batches": DataLoader(LOADER.dataset, 128, drop_last=True)}, "no batches left"),
        ({"probe": LOADER.dataset}, "the probe is TensorDataset: pass one batch"),
        ({"probe": LOADER}, "the probe is DataLoader: pass one batch"),
        ({"validation": LOADER}, "validation is DataLoader: pass Validation"),
        ({"options": {"lr_end": 1.0}}, "options is dict: pass RangeTestOptions"),
        ({"step": {"accumulate": 2}}, "step is dict: pass StepOptions"),
        ({"smoothing": 0.9}, "smoothing is float: pass Smoothing"),
    ],
)
def test_an_argument_of_another_kind_is_named(changes, message):
    model = classifier()
    arguments = {
        "model": model, "optimizer": sgd(model), "loss_fn": nn.CrossEntropyLoss(),
        "batches": LOADER, **changes,
    }  # fmt: skip
    with pytest.raises(LRRTError, match=message) as error:
        range_test(**arguments)
    assert "\n" not in str(error.value)


def test_data_that_yields_batches_is_no_dataset_of_examples():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(LOADER)

    assert len(run(batches=Stream(), lr_end=1e-3, iterations=10)) == 10
