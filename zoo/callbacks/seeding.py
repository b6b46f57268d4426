"""Random numbers of the model (dropout, DropBlock) as a function of (seed, step, rank)."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.streams import key


class StepSeed(Callback):
    """Seeds torch before every training step, so that a resumed run draws what the unbroken one would have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        stream = key(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        # torch.manual_seed also queues a seeding of every device, with a stack trace, which costs half a millisecond
        torch.default_generator.manual_seed(int(stream) >> 1)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(int(stream) >> 1)
