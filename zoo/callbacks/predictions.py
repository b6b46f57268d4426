"""Writes what ``predict`` returns as a table."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from zoo.callbacks.summary import write_rows
from zoo.distributed import gather_objects


class PredictionTable(Callback):
    """Writes ``predictions.csv`` from the rows, flat dicts, that ``predict_step`` returns.

    The rows of all ranks are joined; one that comes twice, as from a sample that fills a batch, is written once.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._rows.extend(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        rows = list({tuple(row.items()): row for row in gather_objects(self._rows)}.values())
        if not rows or not trainer.is_global_zero:
            return
        file = Path(log_dir or ".") / "predictions.csv"
        write_rows(file, rows)
        rank_zero_info(f"{len(rows)} predictions in {file}")
