"""The fine-tuning of a small transformer, which computes its own loss from a batch by name.

lrrt-stage main --setup examples.setups.fine_tuning:setup --clip-norm 1
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification

from pipeline import Setup


def accuracy(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the share of a batch whose largest logit is that of its label."""
    return (output.logits.argmax(-1) == batch["labels"]).float().mean()


def build(pretrained: str | None) -> nn.Module:
    """Return a vision transformer for digits: that of a folder, or a new one of two layers."""
    if pretrained is not None:
        return ViTForImageClassification.from_pretrained(pretrained, num_labels=10)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(num_hidden_layers=2, **size, **images))


def setup(pretrained: str | None = None, batch_size: int = 32) -> Setup:
    """Return a transformer whose head learns ten times as fast as the layers before it."""
    digits = load_digits()
    rows = [
        {"pixel_values": torch.tensor(image / 16).float()[None], "labels": int(label)}
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    model = build(pretrained)
    groups = [
        {"params": model.vit.parameters(), "lr": 1e-4},
        {"params": model.classifier.parameters(), "lr": 1e-3},
    ]
    return Setup(
        model=model,
        optimizer=torch.optim.AdamW(groups),
        train_batches=DataLoader(rows[:1437], batch_size, shuffle=True, drop_last=True),
        val_batches=DataLoader(rows[1437:], 120),
        metrics={"accuracy": (accuracy, "max")},
    )
