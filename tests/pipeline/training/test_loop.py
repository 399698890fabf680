from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

import pipeline.data.datasets
from lrrt_stage import (
    LRCurve,
    LRRange,
    LRRTError,
    RangeTestOptions,
    TrainingStep,
    digest,
)
from lrrt_stage.state import weights
from pipeline.task.plan import RangeTestPlan
from pipeline.task.prepared import PreparedTask
from pipeline.task.tasks import Runtime, Task
from pipeline.training import checkpoint
from pipeline.training.loop import Epoch, Training, TrainingHistory, train
from pipeline.training.options import TrainOptions

CPU = Runtime(device="cpu")
RANGE = LRRange(0.005, 0.05)
MLP = {"model": "mlp", "model_args": {"width": 16}}


def prepared(**changes) -> PreparedTask:
    return PreparedTask(Task(**changes), CPU)


def end(training: Training) -> str:
    return digest(weights.state_of(training.model))


def history(training: Training) -> tuple:
    return training.lr, training.train_loss, training.epochs


def trained(task: PreparedTask, lr_range: LRRange = RANGE, **options) -> Training:
    return train(task, task.initial_weights(), lr_range, TrainOptions(**options))


def test_digits_are_learned_in_five_epochs():
    training = trained(prepared(model="mlp"), LRRange(0.01, 0.1), epochs=5)

    assert training.epochs[-1].metrics["accuracy"] > 0.95
    assert training.val_loss < 0.2
    assert not training.diverged


VARIANTS = {
    "batch norm": {"model": "cnn", "model_args": {"width": 4}},
    "dropout": {"model": "dropout"},
    "augmentation": {"model": "dropout", "augment": "crop-flip"},
    "accumulation": {"model": "dropout", "accumulate": 2, "clip_norm": 1.0},
    "bf16": {"model": "dropout", "precision": "bf16"},
    "l2": {"model": "dropout", "l2": 0.01, "clip_norm": 1.0},
    "l2 in bf16": {"model": "cnn", "model_args": {"width": 4}, "l2": 0.01, "precision": "bf16"},
    "l2 channels last": {
        "model": "cnn",
        "model_args": {"width": 4},
        "l2": 0.01,
        "channels_last": True,
    },
    "not normalised": {**MLP, "normalize": False},
    "shifts": {"model": "dropout", "augment": "shift-flip"},
    "channels last": {"model": "cnn", "model_args": {"width": 4}, "channels_last": True},
    "adamw": {**MLP, "optimizer": "adamw"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_range_test_has_the_first_loss_of_training_and_does_not_change_it(changes, dropout_model):
    if changes["model"] == "dropout":
        changes = changes | {"model": dropout_model}
    plain, tested = (prepared(batch_size=256, **changes) for _ in range(2))
    expected = trained(plain, epochs=2)
    curve = tested.range_test(
        tested.initial_weights(), RangeTestPlan(RangeTestOptions(iterations=12))
    )
    training = trained(tested, epochs=2)

    assert training.train_loss[0] == curve.loss[0]
    assert training.train_loss[1] != curve.loss[1]  # the learning rates of the first step differ
    assert end(training) == end(expected)
    assert history(training) == history(expected)


def test_the_first_loss_depends_on_the_seed_of_data_and_dropout(dropout_model):
    def first(data_seed: int) -> float:
        task = prepared(model=dropout_model, data_seed=data_seed, batch_size=256)
        return trained(task, epochs=1).train_loss[0]

    assert first(1) != first(2)


def test_training_neither_reads_nor_changes_the_global_random_states(dropout_model):
    made = prepared(model=dropout_model, augment="crop-flip", batch_size=256)
    state = made.initial_weights()

    def run(seed: int) -> str:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        trained = train(made, state, RANGE, TrainOptions(epochs=1))
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        return end(trained)

    assert run(1) == run(2)


def test_the_weights_it_starts_from_stay_as_they_are():
    made = prepared(**MLP)
    state = made.initial_weights()
    before = digest(state)
    train(made, state, RANGE, TrainOptions(epochs=1))

    assert digest(state) == before


class TestHistory:
    def test_there_is_a_value_for_every_step_and_every_epoch(self):
        training = trained(prepared(**MLP), epochs=3)

        # 1437 // 64 batches in an epoch
        assert training.total_steps == 66
        assert len(training.lr) == len(training.train_loss) == 66
        assert [epoch.iteration for epoch in training.epochs] == [22, 44, 66]

    def test_accumulated_batches_are_one_step(self):
        training = trained(prepared(**MLP, accumulate=4), epochs=2)

        assert training.total_steps == len(training.lr) == len(training.train_loss) == 10

    def test_an_epoch_with_fewer_batches_than_are_accumulated_is_one_step(self):
        training = trained(prepared(**MLP, batch_size=600, accumulate=5), epochs=2)

        assert len(training.train_loss) == 2

    def test_the_learning_rates_are_those_of_the_schedule(self):
        training = trained(prepared(**MLP), epochs=2)
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        by_hand = OneCycleLR(optimizer, 0.05, total_steps=44, div_factor=10, cycle_momentum=False)
        expected = []
        for _ in range(44):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            by_hand.step()

        assert training.lr == pytest.approx(expected, rel=1e-12)

    def test_the_last_epoch_is_the_validation_of_the_trained_model(self):
        made = prepared(**MLP)
        training = trained(made, epochs=2)

        assert made.evaluate(training.setup) == (
            training.epochs[-1].val_loss,
            training.epochs[-1].metrics,
        )
        assert training.val_loss == training.epochs[-1].val_loss

    def test_a_constant_rate_steps_as_a_loop_by_hand_does(self):
        made = prepared(**MLP, momentum=0.9, weight_decay=1e-3)
        state = made.initial_weights()
        training = train(made, state, RANGE, TrainOptions(epochs=2, schedule="constant"))

        start = made.start(state)
        model = start.model
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        losses = []
        for _ in range(2):
            for inputs, labels in start.train_batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())

        assert training.train_loss == pytest.approx(losses, rel=1e-4)

    def test_a_backbone_that_its_factory_keeps_in_evaluation_mode_stays_in_it(self, write_module):
        write_module(
            "frozen_for_tests",
            """
from torch import nn

MODES = []

class Backbone(nn.Sequential):
    def forward(self, x):
        MODES.append((self.training, self[2].training))
        return super().forward(x)

def make():
    backbone = Backbone(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout())
    return nn.Sequential(backbone.requires_grad_(False).eval(), nn.Linear(16, 10))

def make_all():
    return make().eval()
""",
        )
        made = prepared(model="frozen_for_tests:make")
        import frozen_for_tests

        frozen_for_tests.MODES.clear()
        training = trained(made, epochs=2)
        assert set(frozen_for_tests.MODES) == {(False, False)}
        assert training.model.training
        assert not training.model[0].training
        # The first loss is that of the range test.
        curve = made.range_test(made.initial_weights(), RangeTestPlan(RangeTestOptions(
            iterations=10)))  # fmt: skip
        assert curve.loss[0] == training.train_loss[0]
        # A model that is in evaluation mode as a whole is trained as usual.
        frozen_for_tests.MODES.clear()
        trained(prepared(model="frozen_for_tests:make_all"), epochs=1)
        assert (True, True) in frozen_for_tests.MODES

    def test_the_l2_penalty_is_a_decay_of_the_kernels_by_twice_its_coefficient(self):
        # The gradient of l2 · |w|² is 2 · l2 · w.
        made = prepared(
            model="cnn", model_args={"width": 4}, l2=0.05, weight_decay=0.0, batch_size=128
        )
        state = made.initial_weights()
        start = made.start(state)
        kernels = [p for p in start.model.parameters() if p.dim() > 1]
        others = [p for p in start.model.parameters() if p.dim() == 1]
        optimizer = SGD([{"params": kernels, "weight_decay": 0.1}, {"params": others}],
                        lr=0.02, momentum=0.9)  # fmt: skip
        start.model.train()
        losses = []
        for inputs, labels in start.train_batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(start.model(inputs), labels)
            penalty = 0.05 * sum(
                float(kernel.detach().double().square().sum()) for kernel in kernels
            )
            losses.append(loss.item() + penalty)
            loss.backward()
            optimizer.step()
        options = TrainOptions(epochs=1, schedule="constant")
        training = train(made, state, LRRange(0.002, 0.02), options)

        assert training.train_loss == pytest.approx(losses, rel=1e-4)
        for ours, theirs in zip(training.model.parameters(), start.model.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
        # Validation is the cross entropy alone.
        assert training.val_loss == pytest.approx(made.evaluate(start)[0], rel=1e-3)

    def test_epochs_are_told_one_after_the_other(self):
        made, seen = prepared(**MLP), []

        def on_epoch(training: Training) -> None:
            seen.append((len(training.epochs), len(training.lr)))

        state = made.initial_weights()
        train(made, state, RANGE, TrainOptions(epochs=3), on_epoch=on_epoch)

        assert seen == [(1, 22), (2, 44), (3, 66)]


def resumed(make, options: TrainOptions, path: Path) -> Training:
    """Interrupt a training after two epochs, disturb every random state, and resume it."""

    def interrupt(training: Training) -> None:
        if len(training.epochs) == 2:
            raise KeyboardInterrupt

    made = make()
    state = made.initial_weights()
    with pytest.raises(KeyboardInterrupt):
        train(made, state, RANGE, options, on_epoch=interrupt, checkpoint=path)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    made = make()
    return train(made, made.initial_weights(), RANGE, options, checkpoint=path)


# Gradients so large that fp16 overflows and its loss scale is lowered.
OVERFLOW = {"precision": "fp16", "clip_norm": 0.1, "model_args": {"gain": 100}}


def test_a_step_that_fp16_leaves_out_brings_no_warning(dropout_model):
    task = prepared(model=dropout_model, batch_size=256, **OVERFLOW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(task, epochs=1)


class TestInterruption:
    @pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
    @pytest.mark.parametrize(
        ("schedule", "changes"),
        [
            ("one-cycle", {"optimizer": "sgd"}),
            ("triangular", {"optimizer": "adam", "accumulate": 3}),
            ("warm-restarts", {"optimizer": "adamw", "clip_norm": 0.5}),
            ("constant", {"optimizer": "sgd", "precision": "bf16", "channels_last": True}),
            ("one-cycle", OVERFLOW),
        ],
    )
    def test_a_resumed_training_ends_bit_for_bit_as_one_without_interruption(
        self, dropout_model, tmp_path, schedule, changes
    ):
        def make() -> PreparedTask:
            return prepared(model=dropout_model, augment="crop-flip", batch_size=256, **changes)

        options = TrainOptions(epochs=3, schedule=schedule)
        expected = train(make(), make().initial_weights(), RANGE, options)
        training = resumed(make, options, tmp_path / "checkpoint")

        assert not expected.diverged
        assert history(training) == history(expected)
        assert end(training) == end(expected)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_so_does_one_whose_images_are_read_batch_by_batch(self, tmp_path, monkeypatch, workers):
        from PIL import Image

        rng = np.random.default_rng(0)
        for name in "ab":
            (tmp_path / "images" / name).mkdir(parents=True)
            for index in range(10):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
        monkeypatch.setattr(pipeline.data.datasets, "IN_MEMORY_BYTES", 0)

        def make() -> PreparedTask:
            task = Task(
                dataset=f"imagefolder:{tmp_path}/images",
                dataset_args={"size": 8},
                batch_size=4,
                augment="crop-flip",
                **MLP,
            )
            return PreparedTask(task, Runtime(device="cpu", loader_workers=workers))

        options = TrainOptions(epochs=3)
        expected = train(make(), make().initial_weights(), RANGE, options)
        training = resumed(make, options, tmp_path / "checkpoint")

        assert history(training) == history(expected)
        assert end(training) == end(expected)

    def test_a_finished_training_is_read_back_and_not_continued(self, tmp_path):
        path, options = tmp_path / "checkpoint", TrainOptions(epochs=2)
        made = prepared(**MLP)
        state = made.initial_weights()
        done = train(made, state, RANGE, options, checkpoint=path)
        told = []
        again = train(made, state, RANGE, options, checkpoint=path, on_epoch=told.append)

        assert told == []
        assert history(again) == history(done)
        assert end(again) == end(done)

    def test_an_interrupt_while_a_checkpoint_is_written_leaves_the_one_before(
        self, tmp_path, monkeypatch
    ):
        path, written = tmp_path / "checkpoint", []
        save = checkpoint.save_file

        def interrupted(tensors, file, **more):
            save(tensors, file, **more)
            written.append(file)
            if len(written) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save_file", interrupted)
        made = prepared(**MLP)
        state = made.initial_weights()
        with pytest.raises(KeyboardInterrupt):
            train(made, state, RANGE, TrainOptions(epochs=3), checkpoint=path)
        assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]
        assert len(checkpoint.read_checkpoint(path)["history"][-1]) == 1

    def test_a_checkpoint_changes_nothing(self, tmp_path, dropout_model):
        made = prepared(model=dropout_model, batch_size=256)
        state, options = made.initial_weights(), TrainOptions(epochs=2)
        plain = train(made, state, RANGE, options)
        kept = train(made, state, RANGE, options, checkpoint=tmp_path / "checkpoint")

        assert end(kept) == end(plain)
        assert [path.name for path in tmp_path.glob("check*")] == ["checkpoint"]


class TestDivergence:
    def test_a_training_that_diverges_ends_early_and_says_so(self):
        training = trained(prepared(**MLP), LRRange(1e5, 1e6), epochs=20, schedule="constant")

        assert training.diverged
        assert training.val_loss == math.inf
        assert len(training.epochs) < 20

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_one_loss_that_is_not_finite_is_enough(self, bad):
        of_step = TrainingHistory([0.1], [bad], [Epoch(1, 0.5)])
        of_epoch = TrainingHistory([0.1], [0.5], [Epoch(1, bad)])

        for training in (of_step, of_epoch):
            assert training.diverged
            assert training.val_loss == math.inf

    def test_a_training_without_an_epoch_has_not_diverged_but_has_no_loss_yet(self):
        training = Training(setup=prepared(**MLP).setup(), total_steps=9, range=RANGE)

        assert not training.diverged
        assert training.val_loss == math.inf


@pytest.mark.parametrize("epochs", [0, -3])
def test_fewer_than_one_epoch_is_refused(complains, epochs):
    with complains(f"epochs={epochs}"):
        TrainOptions(epochs=epochs)


def test_an_unknown_schedule_brings_the_nearest_name(complains):
    with complains("schedule 'one_cycle'", "did you mean 'one-cycle'?"):
        TrainOptions(schedule="one_cycle")


LATE_FAULT = """
import torch
from pipeline.data import Data
from torch.utils.data import Dataset, get_worker_info

class Late(Dataset):
    def __init__(self, n, bad=None):
        self.n, self.bad = n, bad

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.bad:
            raise OSError("truncated")
        return torch.full((1, 8, 8), index / 24), int(get_worker_info() is None)

def data(bad):
    return Data(Late(24), Late(12, bad), 3)
"""


def test_what_is_wrong_late_in_the_validation_split_is_found_before_an_epoch(
    complains, write_module, monkeypatch
):
    write_module("late_for_tests", LATE_FAULT)
    task = Task(dataset="late_for_tests:data", dataset_args={"bad": 11}, model="mlp", batch_size=4)
    prepared = PreparedTask(task, Runtime(device="cpu"))
    steps = []
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: steps.append(1))

    with complains("a batch of the val split (examples 8, ", "OSError: truncated"):
        train(prepared, prepared.initial_weights(), LRRange(1e-3, 1e-2), TrainOptions(epochs=1))
    assert steps == []


def test_a_validation_split_is_read_by_as_many_processes_as_training(write_module):
    write_module("late_for_tests", LATE_FAULT)
    task = Task(dataset="late_for_tests:data", dataset_args={"bad": 99}, model="mlp", batch_size=4)
    prepared = PreparedTask(task, Runtime("cpu", "data", 1))

    in_this_process = [
        label for _, labels in prepared.setup().val_batches for label in labels.tolist()
    ]
    assert in_this_process == [0] * 12


TOO_HIGH = LRRange(0.4, 4.0)
"""A third of it is as well; a ninth is not."""
FIVE = TrainOptions(epochs=5)


@pytest.fixture(scope="module")
def tested():
    made = prepared(**MLP)
    state = made.initial_weights()
    return made, state, made.range_test(state)


@pytest.fixture(scope="module")
def guarded(tested):
    made, state, curve = tested
    seen: list[tuple[int, int, str]] = []

    def on_epoch(training: Training) -> None:
        seen.append((len(training.lost) + 1, len(training.epochs), training.reason))

    return train(made, state, TOO_HIGH, FIVE, curve=curve, on_epoch=on_epoch), seen


class TestAttempts:
    """A training that is being ruined starts again from the same weights."""

    def test_the_attempt_that_counts_is_a_training_with_its_range(self, tested, guarded):
        made, state, _ = tested
        training, _ = guarded
        assert training.reason == ""
        assert training.range == LRRange(0.4 / 9, 4.0 / 9)
        plain = train(made, state, training.range, FIVE)
        assert end(training) == end(plain)
        assert history(training) == history(plain)

    def test_lost_attempts_are_kept_with_their_reasons(self, tested, guarded):
        _, _, curve = tested
        training, seen = guarded
        assert [lost.range.max for lost in training.lost] == [4.0, 4.0 / 3]
        for lost in training.lost:
            assert "less than half of the way" in lost.reason
            assert lost.train_loss[0] == training.train_loss[0] == curve.loss[0]
            assert 71 < len(lost.train_loss) == len(lost.lr) < 110
        # After every epoch, and where an attempt is lost.
        reasons = [lost.reason for lost in training.lost]
        assert seen == [
            *[(1, epoch, "") for epoch in (1, 2, 3, 4)],
            (1, 4, reasons[0]),
            *[(2, epoch, "") for epoch in (1, 2, 3, 4)],
            (2, 4, reasons[1]),
            *[(3, epoch, "") for epoch in (1, 2, 3, 4, 5)],
        ]

    def test_joined_they_are_one_history(self, guarded):
        training, _ = guarded
        joined = training.joined()
        lengths = [len(each.train_loss) for each in (*training.lost, training)]
        assert joined.starts == [0, lengths[0], lengths[0] + lengths[1]]
        assert len(joined.lr) == len(joined.train_loss) == sum(lengths)
        last = joined.starts[-1]
        assert joined.train_loss[last:] == training.train_loss
        assert [each.iteration for each in joined.epochs[-5:]] == [
            last + each.iteration for each in training.epochs
        ]

    def test_if_all_are_lost_the_last_one_says_why(self, tested):
        made, state, curve = tested
        training = train(made, state, LRRange(1e3, 1e4), FIVE, curve=curve)
        assert len(training.lost) == 2
        assert training.reason
        assert training.range.max == pytest.approx(1e4 / 9)

    def test_a_single_attempt_is_watched_as_well(self, tested):
        made, state, curve = tested
        options = TrainOptions(epochs=5, attempts=1)
        training = train(made, state, TOO_HIGH, options, curve=curve)
        assert training.lost == []
        assert "less than half" in training.reason

    def test_without_a_curve_it_goes_on_to_its_end(self, tested):
        made, state, _ = tested
        training = train(made, state, TOO_HIGH, FIVE)
        assert len(training.epochs) == 5
        assert training.reason == ""

    @pytest.mark.parametrize("stopped_at", [(1, 3), (2, 1), (2, 3), (3, 2)])
    def test_a_training_resumes_in_any_attempt(self, tested, guarded, tmp_path, stopped_at):
        made, state, curve = tested
        path, told = tmp_path / "checkpoint", []

        def interrupt(training: Training) -> None:
            if (len(training.lost) + 1, len(training.epochs)) == stopped_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(
                made,
                state,
                TOO_HIGH,
                FIVE,
                curve=curve,
                on_epoch=interrupt,
                checkpoint=path,
            )
        resumed = train(
            made,
            state,
            TOO_HIGH,
            FIVE,
            curve=curve,
            on_epoch=lambda training: told.append(len(training.lost) + 1),
            checkpoint=path,
        )
        whole, _ = guarded
        assert end(resumed) == end(whole)
        assert resumed.joined() == whole.joined()
        assert [lost.reason for lost in resumed.lost] == [lost.reason for lost in whole.lost]
        assert told[0] == stopped_at[0]

    def test_a_checkpoint_with_as_many_lost_attempts_as_are_allowed_is_refused(
        self, tested, tmp_path
    ):
        made, state, curve = tested
        path = tmp_path / "checkpoint"

        def interrupt(training: Training) -> None:
            if training.lost and training.epochs:
                raise KeyboardInterrupt

        more = {"curve": curve, "checkpoint": path}
        with pytest.raises(KeyboardInterrupt):
            train(made, state, TOO_HIGH, FIVE, on_epoch=interrupt, **more)
        with pytest.raises(LRRTError, match="1 attempts that were lost.*raise it"):
            train(made, state, TOO_HIGH, TrainOptions(epochs=5, attempts=1), **more)

    def test_a_curve_without_a_fall_is_refused(self, tested):
        made, state, curve = tested
        flat = LRCurve(curve.lr, np.full(len(curve), 2.3))
        with pytest.raises(LRRTError, match="attempts=1"):
            train(made, state, RANGE, FIVE, curve=flat)


class TestBestEpoch:
    def test_its_weights_are_kept(self):
        made, kept = prepared(**MLP), {}
        state = made.initial_weights()

        def on_epoch(training: Training) -> None:
            kept[len(training.epochs)] = end(training)

        # A high constant learning rate: the validation loss goes up and down.
        options = TrainOptions(epochs=8, schedule="constant")
        training = train(made, state, LRRange(0.04, 0.4), options, on_epoch=on_epoch)
        losses = [epoch.val_loss for epoch in training.epochs]
        best = losses.index(min(losses))
        assert best < 7
        assert training.best_epoch is training.epochs[best]
        assert digest(training.best_weights) == kept[best + 1]
        assert end(training) == kept[8]

    def test_they_outlive_an_interruption(self, tmp_path):
        made, path = prepared(**MLP), tmp_path / "checkpoint"
        state, options = made.initial_weights(), TrainOptions(epochs=8, schedule="constant")
        whole = train(made, state, LRRange(0.04, 0.4), options)

        def interrupt(training: Training) -> None:
            if len(training.epochs) == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(made, state, LRRange(0.04, 0.4), options, on_epoch=interrupt, checkpoint=path)
        resumed = train(made, state, LRRange(0.04, 0.4), options, checkpoint=path)
        assert digest(resumed.best_weights) == digest(whole.best_weights)
        assert resumed.best_epoch == whole.best_epoch

    def test_of_equal_losses_the_first_counts_and_those_that_are_not_finite_do_not(self):
        epochs = [Epoch(1, math.nan), Epoch(2, 0.5), Epoch(3, 0.5), Epoch(4, None)]
        assert TrainingHistory(epochs=epochs).best_epoch is epochs[1]
        assert TrainingHistory(epochs=epochs[:1]).best_epoch is None
