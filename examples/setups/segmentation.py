"""A segmentation: which pixels of a photograph of coins belong to a coin.

lrrt-stage main --setup examples.setups.segmentation:setup --refine true --metric iou
"""

from functools import cache

import torch
from skimage import data, filters
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryJaccardIndex

from pipeline import Setup

SIDE = 32


@cache  # a setup is made several times, with the same data each time
def tiles() -> tuple[Tensor, Tensor]:
    """Return tiles of a photograph with noise, and their masks, both ``[108, 1, 32, 32]``."""
    photograph = torch.tensor(data.coins()[:288, :384] / 255, dtype=torch.float32)
    mask = photograph > filters.threshold_otsu(filters.gaussian(photograph.numpy(), 1))
    generator = torch.Generator().manual_seed(0)
    noisy = photograph + 0.1 * torch.randn(photograph.shape, generator=generator)
    images, masks = (
        whole.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, 1, SIDE, SIDE)
        for whole in (noisy, mask.float())
    )
    order = torch.randperm(len(images), generator=generator)
    return images[order], masks[order]


def setup(width: int = 16, batch_size: int = 12) -> Setup:
    """Return a fully convolutional network with dilations."""
    images, masks = tiles()
    layers: list[nn.Module] = []
    for before, dilation in ((1, 1), (width, 2), (width, 4)):
        convolution = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))
    return Setup(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.01),
        train_batches=DataLoader(TensorDataset(images[:84], masks[:84]), batch_size, shuffle=True),
        val_batches=DataLoader(TensorDataset(images[84:], masks[84:]), 24),
        loss_fn=nn.BCEWithLogitsLoss(),
        metrics={"iou": BinaryJaccardIndex()},
    )
