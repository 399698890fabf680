"""A transformers Trainer that starts again with lower learning rates if it is being ruined.

python -m examples.guarded.trainer
"""

from tempfile import TemporaryDirectory

import mlflow
import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from lrrt_stage import Guard, LRRange
from lrrt_stage.adapters import from_transformers
from mlflow_project import track_range_test
from mlflow_project.callbacks.transformers import WatchAttempt

DARING = LRRange(0.05, 0.5)
"""Far above what the range test suggests, so that the first attempt is lost."""


def make_trainer(folder: str, rows: list, lr: float) -> Trainer:
    """Return a Trainer of a new model, the same one at every call."""
    set_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=2, **size, **images))
    arguments = TrainingArguments(
        folder,
        learning_rate=lr,
        num_train_epochs=4,
        per_device_train_batch_size=32,
        warmup_steps=10,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=rows[:1437], eval_dataset=rows[1437:])


def main() -> Guard:
    """Train a new model for every attempt, from the weights of the range test."""
    digits = load_digits()
    rows = [
        {"pixel_values": torch.tensor(image / 16).float()[None], "labels": int(label)}
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    run = mlflow.start_run(run_name="digits by a guarded Trainer")
    with TemporaryDirectory() as folder, run:
        handoff = track_range_test(**from_transformers(make_trainer(folder, rows, lr=1e-3)))
        guard = handoff.guard(DARING)
        for attempt in guard:
            trainer = make_trainer(folder, rows, attempt.range.max)
            handoff.load_weights(trainer.model)
            trainer.add_callback(WatchAttempt(attempt))
            trainer.train()
        handoff.track_training(attempt.range)
        mlflow.log_metrics(trainer.evaluate())
    return guard


if __name__ == "__main__":
    mlflow.set_experiment("digits")
    print(main().attempts)
