"""The fine-tuning of a small transformer, which computes its own loss from a batch by name.

lrrt-stage main --setup examples.setups.fine_tuning:setup --clip-norm 1 --metric accuracy
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from pipeline import Setup

GREYS, PIXELS, CLASSES = 17, 64, 10


def accuracy(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the share of a batch whose largest logit is that of its label."""
    return (output.logits.argmax(-1) == batch["labels"]).float().mean()


def build(pretrained: str | None) -> nn.Module:
    """Return a classifier of sequences: that of a folder or hub, or a new one of two layers."""
    if pretrained is not None:
        return BertForSequenceClassification.from_pretrained(pretrained, num_labels=CLASSES)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    length = {"vocab_size": GREYS, "max_position_embeddings": PIXELS, "num_labels": CLASSES}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=2, **size, **length))


def setup(pretrained: str | None = None, batch_size: int = 32) -> Setup:
    """Return a transformer that reads a digit pixel by pixel; its head learns ten times as fast."""
    pixels, labels = load_digits(return_X_y=True)
    rows = [
        {"input_ids": torch.tensor(row, dtype=torch.long), "labels": int(label)}
        for row, label in zip(pixels, labels, strict=True)
    ]
    model = build(pretrained)
    groups = [
        {"params": model.bert.parameters(), "lr": 1e-4},
        {"params": model.classifier.parameters(), "lr": 1e-3},
    ]
    return Setup(
        model=model,
        optimizer=torch.optim.AdamW(groups),
        train_batches=DataLoader(rows[:1437], batch_size, shuffle=True, drop_last=True),
        val_batches=DataLoader(rows[1437:], 120),
        metrics={"accuracy": (accuracy, "max")},
    )
