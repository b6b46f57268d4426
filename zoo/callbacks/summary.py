"""What a run ends with: the numbers, how long it took, and where the files are."""

import csv
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.table import Table

from zoo.console import console

FIT_SECONDS = "fit/seconds"


@runtime_checkable
class Reports(Protocol):
    """A LightningModule that has a table of results to show after a test."""

    def results(self) -> Sequence[dict[str, Any]]:
        """Flat rows with the same keys."""
        ...


class Summary(Callback):
    """Prints a closing table after fit and test, and writes a test's table as ``results.csv``.

    The seconds of a fit go to the loggers too.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.monitor = monitor
        self._start = perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._start = perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        rows = {"steps": str(trainer.global_step)}
        if self.monitor and best is not None and best.best_model_score is not None:
            interval = trainer.callback_metrics.get(f"{self.monitor}_ci95")
            last = trainer.callback_metrics.get(self.monitor)
            rows[f"best {self.monitor}"] = f"{best.best_model_score.item():.4f}"
            if last is not None:
                rows[f"last {self.monitor}"] = f"{last.item():.4f}" + (f" ± {interval:.4f}" if interval else "")
        seconds = perf_counter() - self._start
        for logger in trainer.loggers:
            logger.log_metrics({FIT_SECONDS: seconds}, trainer.global_step)
        self._show(trainer, "fit", rows)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        results = list(pl_module.results()) if isinstance(pl_module, Reports) else []
        if results and trainer.is_global_zero:
            console().print(results_table(results, "Test results"))
            if log_dir is not None:
                write_rows(Path(log_dir) / "results.csv", results)
        self._show(trainer, "test", {})

    def _show(self, trainer: Trainer, stage: str, rows: dict[str, str]) -> None:
        log_dir = trainer.log_dir
        if not trainer.is_global_zero:
            return
        table = Table(title=f"{stage} finished", show_header=False)
        for name, value in {**rows, "seconds": f"{perf_counter() - self._start:.0f}"}.items():
            table.add_row(name, value)
        if log_dir is not None:
            table.add_row("files", str(log_dir))
        console().print(table)


def results_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Rows with the same keys as a table to print; floats with two digits."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def write_rows(file: Path, rows: Sequence[dict[str, Any]], append: bool = False) -> None:
    """Rows with the same keys as a CSV file with a header, or behind those that it has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a" if append else "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        if not append:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What :func:`write_rows` wrote: whole numbers as int, others as float, empty cells as None, all else as str.

    Raises:
        ValueError: if a line has another number of cells than the header.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        lines = csv.DictReader(stream)
        rows = []
        for row in lines:
            if None in row or None in row.values():
                raise ValueError(f"{file}, line {lines.line_num}: not as many cells as the header has")
            rows.append({name: _value(cell) for name, cell in row.items()})
    return rows


def _value(cell: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None
