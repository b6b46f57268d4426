"""Pictures of a run: training curves for any method, and what the method itself draws."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Draws(Protocol):
    """A LightningModule that has pictures to show after a fit, a test or a prediction."""

    def figures(self) -> "Mapping[str, Figure]":
        """Figures by file name, without suffix."""
        ...


class Figures(Callback):
    """Saves as PNG files what the module draws after a fit, a test and a prediction, and a fit's training curves."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        if trainer.is_global_zero and log_dir is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(log_dir)
            for logger in trainer.loggers:
                logger.save()
            if (folder / "metrics.csv").is_file():
                save_figure(folder, "training_curves", training_curves(folder / "metrics.csv"))
            self._draw(folder, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir
        if trainer.is_global_zero and log_dir is not None:
            self._draw(Path(log_dir), pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_test_end(trainer, pl_module)

    def _draw(self, folder: Path, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Draws):
            for name, figure in pl_module.figures().items():
                save_figure(folder, name, figure)


def read_curves(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of every column of a ``metrics.csv``; a line that is still being written is left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    with metrics.open(newline="", encoding="utf-8") as stream:
        lines = csv.DictReader(stream)
        for row in lines:
            if None in row or None in row.values():
                continue
            try:
                for column, value in row.items():
                    if value and column not in ("epoch", "step"):
                        curves.setdefault(column, []).append((int(row["step"]), float(value)))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{metrics}, line {lines.line_num}: no metrics of a run: {error}") from None
    return curves


def is_drawn(column: str) -> bool:
    """Whether a column of a ``metrics.csv`` is a curve to look at: of training or validation, no interval, no speed."""
    return column.startswith(("train/", "val/")) and not column.endswith(("_ci95", "_per_second"))


def training_curves(metrics: Path) -> "Figure":
    """One panel a quantity of a ``metrics.csv``: ``train/x`` and ``val/x`` share the panel ``x``."""
    from matplotlib.figure import Figure

    curves = {column: points for column, points in sorted(read_curves(metrics).items()) if is_drawn(column)}
    panels: dict[str, list[str]] = {}
    for column in curves:
        panels.setdefault(column.split("/")[1], []).append(column)
    figure = Figure(figsize=(5, 3 * max(len(panels), 1)), layout="constrained")
    axes = figure.subplots(max(len(panels), 1), squeeze=False)[:, 0]
    for ax, (quantity, columns) in zip(axes, panels.items(), strict=False):
        for column in columns:
            points = curves[column]
            ax.plot(*zip(*points, strict=True), label=column, marker="." if len(points) < 30 else None)
        ax.set(xlabel="optimiser step", ylabel=quantity)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    return figure


def save_figure(folder: Path, name: str, figure: "Figure") -> None:
    """Save a figure as ``figures/<name>.png`` in a run folder."""
    file = folder / "figures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
