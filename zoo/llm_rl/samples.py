"""Completions as people look at them: a few on the screen, all of them in a file."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.table import Table

from zoo.console import console


class SampleTable(Callback):
    """Keeps the completions of a rollout every so many optimiser steps, with rewards, advantage and trained tokens.

    ``samples.jsonl`` in the run folder has those of rank 0, with the step; W&B gets them as a table.

    Args:
        every_n_steps: optimiser steps between two rollouts that are kept.
        shown: how many of them are printed; 0 for none.
    """

    def __init__(self, every_n_steps: int = 50, shown: int = 4) -> None:
        if every_n_steps < 1 or shown < 0:
            raise ValueError(f"every_n_steps={every_n_steps}, shown={shown}: must be at least 1 and 0")
        self.every_n_steps, self.shown = every_n_steps, shown
        self._next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._next = state_dict["next"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rows = pl_module.sample_rows()  # type: ignore[operator]
        if not rows or trainer.global_step < self._next:
            return
        self._next = trainer.global_step + self.every_n_steps
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        if not trainer.is_global_zero:
            return
        rows = [{"step": trainer.global_step, **row} for row in rows]
        if log_dir is not None and trainer.logger is not None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            with (Path(log_dir) / "samples.jsonl").open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("samples", list(rows[0]), [list(row.values()) for row in rows], step=rows[0]["step"])
        if self.shown:
            console().print(_table(rows[:: max(len(rows) // self.shown, 1)][: self.shown]))


def _table(rows: list[dict[str, Any]]) -> Table:
    hidden = {"step", "id", "answer"}
    names = [name for name in rows[0] if name not in hidden]
    table = Table(*names, title=f"completions at step {rows[0]['step']}", show_lines=True)
    for row in rows:
        values = (row[name] for name in names)
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    return table
