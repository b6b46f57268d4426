"""Steps and samples per second of an epoch's training batches."""

from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs ``train/steps_per_second`` and ``train/samples_per_second`` (all ranks) once an epoch.

    Validation inside the epoch does not count. A sample is a row of the batch's first tensor.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()  # an epoch that is resumed in the middle does not start again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        self._seconds, self._steps, self._samples, self._since = 0.0, 0, 0, perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        self._steps += 1
        self._samples += next((len(part) for part in batch if torch.is_tensor(part)), 0)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._seconds += perf_counter() - self._since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self._seconds + perf_counter() - self._since
        pl_module.log("train/steps_per_second", self._steps / seconds)
        pl_module.log("train/samples_per_second", self._samples * trainer.world_size / seconds)
