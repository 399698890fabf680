"""A model that several ranks train: all of it on each of them, or a part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lrrt_stage.measure.step import BatchLoss
from lrrt_stage.settings import require
from pipeline.ranks.group import Ranks

__all__ = ["share_model"]

LISTS = (nn.ModuleList, nn.ModuleDict)


class _LossOfModel(nn.Module):
    """The training loss as a module, of which DDP sees the whole forward pass.

    A loss may call parts of the model, or read its attributes, and still has the model itself.
    """

    def __init__(self, model: nn.Module, losses: Iterable[nn.Module], batch_loss: BatchLoss):
        super().__init__()
        self.model, self.losses, self.batch_loss = model, nn.ModuleList(losses), batch_loss

    def forward(self, batch: Any) -> Tensor:
        return self.batch_loss(batch)


def share_model(
    ranks: Ranks,
    model: nn.Module,
    optimizer: Optimizer,
    batch_loss: BatchLoss,
    losses: Iterable[nn.Module] = (),
) -> BatchLoss:
    """Have the ranks train ``model`` together; return the loss of a rank's part of a batch.

    With ``ddp`` the model stays as it is, and the gradients of the returned loss are means over the
    ranks. With ``fsdp`` its parameters become parts of them, also in the optimizer.

    Raises
    ------
    LRRTError
        If the optimizer has parameters outside of the model, or of the losses with ``ddp``. For
        ``fsdp``, if it has a state already, or blocks of the model share weights.
    """
    whole = _LossOfModel(model, losses, batch_loss)
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    if ranks.options.strategy == "ddp":
        known = {id(parameter) for parameter in whole.parameters()}
        require(
            all(id(parameter) in known for parameter in optimized),
            f"{type(optimizer).__name__} has parameters that neither the model nor a loss that is "
            "a module holds, whose gradients several processes would not share: make them a part "
            "of one",
        )
        # Which parameters a step leaves out may depend on the step, and on the rank's examples. To
        # look for them takes 2 % of a step of ResNet-20.
        parallel = DistributedDataParallel(whole, find_unused_parameters=True)
        return lambda batch: parallel(batch)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    require(
        all(id(parameter) in names for parameter in optimized) and not optimizer.state,
        f"strategy=fsdp cannot share a {type(optimizer).__name__} that has a state already, or "
        "parameters outside of the model: use strategy=ddp",
    )
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.share.size,))
    for unit in _units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    parts = dict(model.named_parameters())
    require(
        len(parts) == len(names),
        "strategy=fsdp cannot share weights that two blocks of the model have in common: use "
        "strategy=ddp",
    )
    for group in optimizer.param_groups:
        group["params"] = [parts[names[id(parameter)]] for parameter in group["params"]]
    return batch_loss


def _units(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that are gathered one after the other: the blocks in its lists.

    transformers names the classes of its blocks. Otherwise these are the entries of the outermost
    ``ModuleList`` and ``Sequential`` objects. Inner ones come first, as FSDP needs it.
    """
    if named := getattr(model, "_no_split_modules", None):
        return [each for each in model.modules() if type(each).__name__ in named][::-1]
    found: dict[nn.Module, None] = {}  # each once: two lists may hold it

    def search(module: nn.Module) -> None:
        for child in module.children():
            # A list has no forward pass of its own.
            if isinstance(child, LISTS) or not isinstance(module, (*LISTS, nn.Sequential)):
                search(child)
            elif next(child.parameters(), None) is not None:
                found[child] = None

    search(model)
    return [*found]
