"""The range test on a Trainer of transformers, and on a model of it in a plain loop."""

import copy
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from lrrt_stage import LRRTError, digest, range_test, seeded, suggest
from lrrt_stage.adapters import from_transformers
from lrrt_stage.measure.options import StepOptions
from lrrt_stage.state.weights import state_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MISSING = "is not installed: pip install 'lrrt-stage[transformers]'"
    pytest.importorskip("accelerate", reason=f"accelerate, which the Trainer needs, {MISSING}")
    transformers = pytest.importorskip("transformers", reason=f"transformers {MISSING}")

IMAGES, LABELS = load_digits(return_X_y=True)
ROWS = [
    {"pixel_values": torch.tensor(image / 16, dtype=torch.float32).view(1, 8, 8), "labels": label}
    for image, label in zip(IMAGES, LABELS.tolist(), strict=True)
]


def vit(dropout=0.0):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        image_size=8, patch_size=4, num_channels=1, num_labels=10, initializer_range=0.1,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    with seeded(0):
        return transformers.ViTForImageClassification(config)


@dataclass
class Losses(transformers.TrainerCallback):
    kept: list[float] = field(default_factory=list)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.kept.append(logs["loss"])


@pytest.fixture
def make(tmp_path):
    def make(model=None, evaluated=True, kind=transformers.Trainer, more=None, **options):
        eval_dataset = ROWS[1400:] if evaluated else None
        more = {"train_dataset": ROWS[:1400], "eval_dataset": eval_dataset} | (more or {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path), num_train_epochs=1, per_device_eval_batch_size=64,
                report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, use_cpu=True,
                **{"per_device_train_batch_size": 32, "learning_rate": 3e-3} | options,
            )  # fmt: skip
            return kind(model or vit(), arguments, **more)

    return make


SENTENCES = [
    {"input_ids": torch.arange(9) % 7, "labels": torch.tensor([-100] * hidden + [3] * (9 - hidden))}
    for hidden in (0, 8, 3, 7, 1, 8, 6, 2, 4, 8, 0, 5)
]


def sum_over_labels(outputs, labels, num_items_in_batch=None):
    logits, targets = outputs.logits.flatten(0, -2), labels.flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


def mean_over_labels(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels)


def language_model():
    config = transformers.GPT2Config(
        vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with seeded(0):
        return transformers.GPT2LMHeadModel(config)


def language(make, **options):
    data = {"train_dataset": SENTENCES, "eval_dataset": SENTENCES}
    return make(language_model(), per_device_train_batch_size=2, more=data, **options)


TRAINERS = {
    "plain": lambda make: make(max_steps=3),
    "smoothed labels": lambda make: make(label_smoothing_factor=0.2, max_steps=3),
    "accumulation": lambda make: make(gradient_accumulation_steps=3, max_steps=3),
    "a share of all labels": lambda make: language(make, gradient_accumulation_steps=2),
    "of smoothed ones": lambda make: language(
        make, gradient_accumulation_steps=2, label_smoothing_factor=0.2
    ),
    "a function that divides": lambda make: make(
        gradient_accumulation_steps=2, max_steps=3, more={"compute_loss_func": sum_over_labels}
    ),
    "a function that does not": lambda make: make(
        gradient_accumulation_steps=2, max_steps=3, more={"compute_loss_func": mean_over_labels}
    ),
    "weak clipping": lambda make: make(max_grad_norm=0.1, optim="sgd", max_steps=3),
    "no clipping": lambda make: make(max_grad_norm=0.0, optim="sgd", max_steps=3),
    "bf16": lambda make: make(bf16=True, max_steps=3),
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_losses_are_those_of_the_trainers_own_training(make, kind):
    trainer = TRAINERS[kind](make)
    trainer.args.lr_scheduler_type, trainer.args.learning_rate = "constant", 0.05
    # Its learning rate, in the test's first steps.
    curve = range_test(**from_transformers(trainer), iterations=10, lr_start=0.05, lr_end=0.050001)
    losses = Losses()
    trainer.add_callback(losses)
    trainer.train()
    assert losses.kept[:3] == pytest.approx(curve.loss[:3].tolist(), rel=1e-3)


def test_a_keyword_has_precedence_over_the_trainers_arguments(make):
    arguments = from_transformers(make(gradient_accumulation_steps=2, fp16=True, max_grad_norm=0.3))
    assert arguments["step"] == StepOptions(accumulate=2, clip_norm=0.3, precision="fp16")
    plain = range_test(**from_transformers(make(max_grad_norm=0)), iterations=12)
    changed = range_test(
        **from_transformers(make(max_grad_norm=0.01)), iterations=12, clip_norm=None
    )
    assert changed == plain


class OwnStep(transformers.Trainer):
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)


def test_what_has_no_effect_is_named_in_one_warning(make):
    trainer = make(kind=OwnStep, gradient_checkpointing=True, neftune_noise_alpha=5.0)
    with pytest.warns(UserWarning, match="not applied") as caught:
        from_transformers(trainer)
    (warning,) = caught
    assert warning.filename == __file__
    names = "neftune_noise_alpha, gradient_checkpointing, OwnStep.training_step;"
    assert f"not applied in the range test: {names}" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from_transformers(make(label_smoothing_factor=0.1))


def test_the_loss_of_a_subclass_or_a_function_is_used(make):
    class Doubled(transformers.Trainer):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    def tripled(*args, **kwargs):
        return 3 * mean_over_labels(*args, **kwargs)

    plain = range_test(**from_transformers(make()), iterations=10).loss[0]
    doubled = range_test(**from_transformers(make(kind=Doubled)), iterations=10).loss[0]
    function = make(more={"compute_loss_func": tripled})
    assert doubled == pytest.approx(2 * plain, rel=1e-6)
    assert range_test(**from_transformers(function), iterations=10).loss[0] == pytest.approx(
        3 * plain, rel=1e-6
    )


def test_a_trainer_trains_bit_equally_with_and_without_a_test(make):
    results = []
    for with_test in (False, True):
        trainer = make(vit(dropout=0.1), max_steps=6)
        if with_test:
            assert len(range_test(**from_transformers(trainer), iterations=12)) > 6
        trainer.train()
        results.append(digest(state_of(trainer.model)))
    assert results[0] == results[1]


def test_model_trainer_and_random_states_are_left_as_found(make):
    trainer = make()
    before, weights = dict(vars(trainer)), copy.deepcopy(trainer.model.state_dict())
    random = torch.get_rng_state()
    curve = range_test(**from_transformers(trainer), iterations=30)
    assert torch.equal(torch.get_rng_state(), random)
    assert len(curve.probe_loss) == len(curve) > 20
    # What it caches of the model's signature.
    assert vars(trainer) == before | {"_signature_columns": trainer._signature_columns}
    assert trainer.optimizer is None
    assert not trainer.accelerator.gradient_state.in_dataloader
    assert all(torch.equal(v, weights[name]) for name, v in trainer.model.state_dict().items())


def test_after_a_training_its_optimizer_is_tested_and_kept(make):
    trainer = make(max_steps=3, lr_scheduler_type="constant")
    trainer.train()
    state = copy.deepcopy(trainer.optimizer.state_dict())
    arguments = from_transformers(trainer)
    assert type(arguments["optimizer"]) is torch.optim.AdamW
    range_test(**arguments, iterations=10)
    after = trainer.optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    assert all(
        torch.equal(after["state"][key]["exp_avg"], value["exp_avg"])
        for key, value in state["state"].items()
    )


def test_the_optimizer_is_made_as_the_trainer_makes_it(make):
    trainer = make(weight_decay=0.1)
    decay, none = from_transformers(trainer)["optimizer"].param_groups
    assert (decay["weight_decay"], none["weight_decay"]) == (0.1, 0.0)
    given = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    arguments = from_transformers(make(trainer.model, more={"optimizers": (given, None)}))
    assert arguments["optimizer"] is given


def test_the_curve_has_a_suggestion_that_trains(make):
    trainer = make()
    lr_range = suggest(range_test(**from_transformers(trainer), iterations=100))
    trainer.args.learning_rate, trainer.args.num_train_epochs = lr_range.max, 2
    losses = Losses()
    trainer.add_callback(losses)
    trainer.train()
    assert sum(losses.kept[-5:]) / 5 < 0.6 * losses.kept[0]


def test_the_probe_is_the_first_evaluation_batch(make):
    labels = torch.tensor(LABELS)
    assert torch.equal(from_transformers(make())["probe"]["labels"], labels[1400:1464])
    several = make(more={"eval_dataset": {"first": ROWS[:100], "second": ROWS[100:]}})
    assert torch.equal(from_transformers(several)["probe"]["labels"], labels[:64])
    assert from_transformers(make(evaluated=False))["probe"] is None


WRONG = {
    "its class": (
        lambda make: transformers.Trainer,
        "the class Trainer was given",
    ),
    "its model": (lambda make: vit(), "ViTForImageClassification was given"),
    "no data": (lambda make: make(more={"train_dataset": None}), "no train_dataset"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_tested_is_refused_in_one_line(what, make):
    wrong, message = WRONG[what]
    with pytest.raises(LRRTError, match=message) as caught:
        from_transformers(wrong(make))
    assert "\n" not in str(caught.value)


def test_a_model_in_a_plain_loop_needs_no_adapter():
    model = vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    collate = transformers.default_data_collator
    loader = DataLoader(ROWS[:1400], 32, shuffle=True, collate_fn=collate)
    curve = range_test(
        model, optimizer, None, loader, probe=collate(ROWS[1400:1464]), iterations=60, clip_norm=1.0
    )
    with torch.no_grad():
        untrained = model(**collate(ROWS[1400:1464])).loss.item()
    assert curve.probe_loss[0] == pytest.approx(untrained, rel=1e-5)
    assert 1e-4 < suggest(curve).max < 0.1
