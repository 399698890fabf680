"""Small models of the usual kinds: fully connected, convolutional, attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Attention", "cnn", "image_to_image", "mlp"]


def mlp(
    inputs: int, outputs: int, width: int = 128, depth: int = 2, norm: bool = False
) -> nn.Module:
    """Fully connected, ``[n, …]`` to ``[n, outputs]``, with batch norm or without."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _conv(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        *([nn.BatchNorm2d(outputs)] if norm else []),
        nn.ReLU(),
    ]


def cnn(channels: int, outputs: int, width: int = 16, norm: bool = False) -> nn.Module:
    """Three convolutions and a linear layer, ``[n, channels, h, w]`` to ``[n, outputs]``."""
    return nn.Sequential(
        *_conv(channels, width, norm),
        nn.MaxPool2d(2),
        *_conv(width, 2 * width, norm),
        nn.MaxPool2d(2),
        *_conv(2 * width, 2 * width, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, outputs),
    )


def image_to_image(width: int = 16, depth: int = 3, norm: bool = False) -> nn.Module:
    """Convolutions from a grey image to another, both ``[n, 1, h, w]``."""
    inner = [layer for _ in range(depth - 1) for layer in _conv(width, width, norm)]
    return nn.Sequential(*_conv(1, width, norm), *inner, nn.Conv2d(width, 1, 3, padding=1))


class Attention(nn.Module):
    """A small pre-norm transformer over the codes of a text, or the rows of an image.

    Parameters
    ----------
    length
        Tokens of an input: codes ``[n, length]``, or rows ``[n, 1, length, features]``.
    causal
        Predict the next token at every place; otherwise one output from the tokens' mean.
    """

    def __init__(
        self,
        length: int,
        outputs: int,
        features: int | None = None,
        vocabulary: int = 128,
        width: int = 32,
        layers: int = 2,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width) if features else nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None
        self.register_buffer("mask", mask, persistent=False)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[n, length, outputs]`` if causal, else ``[n, outputs]``."""
        hidden = self.embed(tokens.squeeze(1) if tokens.dim() == 4 else tokens) + self.place
        hidden = self.body(hidden, mask=self.mask, is_causal=self.causal)
        return self.head(hidden if self.causal else hidden.mean(dim=1))
