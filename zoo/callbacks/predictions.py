"""Writes what ``predict`` returns as a table."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from zoo.callbacks.summary import write_rows
from zoo.distributed import gather_objects


class PredictionTable(Callback):
    """Writes ``predictions.csv`` from the rows, flat dicts, that ``predict_step`` returns.

    One process writes each batch as it comes. The rows of several are joined at the end in the order of the samples;
    one that comes twice, as from a sample that fills a rank's last batch, is written once.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        self._file = Path(log_dir or ".") / "predictions.csv"
        self._batches: list[list[dict[str, Any]]] = []
        self._written = 0

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.world_size == 1:
            self._write(outputs)
        else:
            self._batches.append(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            rows = unique_rows(gather_objects(self._batches))
            if trainer.is_global_zero:
                self._write(rows)
        if self._written:
            rank_zero_info(f"{self._written} predictions in {self._file}")

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            write_rows(self._file, rows, append=self._written > 0)
            self._written += len(rows)


def unique_rows(ranks: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The rows of each rank's batches, batch by batch; of those that differ in floats alone, the first."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for batches in zip_longest(*ranks, fillvalue=()):
        for row in chain.from_iterable(batches):
            rows.setdefault(tuple((k, v) for k, v in row.items() if not isinstance(v, float)), row)
    return list(rows.values())
