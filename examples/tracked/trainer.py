"""A transformers Trainer whose training begins with a tracked range test.

python -m examples.tracked.trainer
"""

from tempfile import TemporaryDirectory

import mlflow
import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from mlflow_project.callbacks.transformers import LRRangeTest


def main() -> Trainer:
    """Train inside a run, which gets a child run with the range test."""
    set_seed(0)
    digits = load_digits()
    rows = [
        {"pixel_values": torch.tensor(image / 16).float()[None], "labels": int(label)}
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=2, **size, **images))
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=32,
            warmup_steps=10,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows[:1437], eval_dataset=rows[1437:])
        trainer.add_callback(LRRangeTest(trainer))
        with mlflow.start_run(run_name="digits by a Trainer"):
            trainer.train()
            mlflow.log_metrics(trainer.evaluate())
    return trainer


if __name__ == "__main__":
    mlflow.set_experiment("digits")
    main()
