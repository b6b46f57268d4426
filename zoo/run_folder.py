"""The run folder ``runs/<config>/version_<n>/``: its logger, and how a later command finds it again."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only


class _ContinuedWriter(_ExperimentWriter):
    """Keeps the rows that an earlier part of the same run has written."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.log_dir) / self.NAME_METRICS_FILE
        if file.is_file():
            with file.open(newline="") as lines:
                self.metrics_keys = list(csv.DictReader(lines).fieldnames or [])


class RunLogger(CSVLogger):
    """CSVLogger whose ``metrics.csv`` goes on where a resumed run stopped."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return super().experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run folder's ``config.yaml`` holds them."""


def find_checkpoint(runs: Path, which: str) -> Path | None:
    """The newest ``last.ckpt`` or ``best.ckpt`` below ``runs/version_*``, its tasks included; None without any."""
    files = [
        *runs.glob(f"version_*/checkpoints/{which}.ckpt"),
        *runs.glob(f"version_*/task_*/checkpoints/{which}.ckpt"),
    ]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def last_of(folder: Path) -> Path | None:
    """The ``last.ckpt`` of a run folder, its newest task's, or the newest below a folder of runs; None without any."""
    files = [folder / "checkpoints" / "last.ckpt", *folder.glob("task_*/checkpoints/last.ckpt")]
    found = [file for file in files if file.exists()]
    return max(found, key=lambda file: file.stat().st_mtime) if found else find_checkpoint(folder, "last")


def agent_version() -> str | None:
    """``version_<id>`` with the id of the run under a W&B agent: several start at once, and would count alike."""
    run = os.environ.get("WANDB_RUN_ID")
    return f"version_{run}" if run and "WANDB_SWEEP_ID" in os.environ else None


def version_of(checkpoint: Path, runs: Path) -> str | None:
    """``version_<n>`` if the checkpoint lies in a run folder of ``runs``, or in that of one of its tasks."""
    inside = (
        checkpoint.resolve().relative_to(runs.resolve()).parts
        if checkpoint.resolve().is_relative_to(runs.resolve())
        else ()
    )
    return inside[0] if len(inside) in (3, 4) and inside[-2] == "checkpoints" else None
