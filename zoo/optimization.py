"""Optimisers and schedules, made from what a config gives."""

from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def optimization(
    module: LightningModule,
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    interval: Literal["step", "epoch"] = "step",
) -> Any:
    """What ``configure_optimizers`` returns: one optimiser of the parameters that need a gradient, and its schedule."""
    made = optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
    if scheduler is None:
        return made
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler(made), "interval": interval}}


def linear_warmup(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate at ``step`` from 0: ``step / warmup`` at first, then linearly from 1 to 0."""
    return step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))


class LinearWarmup(LambdaLR):
    """Linear rise over ``warmup`` steps to the optimiser's learning rate, then linear decay to 0 at ``total``."""

    def __init__(self, optimizer: Optimizer, warmup: int, total: int) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"warmup={warmup}, total={total}: need 0 <= warmup < total")
        super().__init__(optimizer, partial(linear_warmup, warmup=warmup, total=total))
