"""Writes what ``predict`` returns as a table."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class PredictionTable(Callback):
    """Writes ``predictions.csv`` from the rows, flat dicts, that ``predict_step`` returns (None for no row)."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._rows.extend(outputs or [])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        if not self._rows or not trainer.is_global_zero:
            return
        file = Path(log_dir or ".") / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self._rows[0]))
            writer.writeheader()
            writer.writerows(self._rows)
        rank_zero_info(f"{len(self._rows)} predictions in {file}")
