"""The checkpoint to resume from, at points where a run can go on exactly."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info


class KeepLast(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` every ``every_n_steps`` optimiser steps, after each epoch and on a stop.

    Ctrl-C finishes the step under way, saves and stops; a second Ctrl-C stops at once. An exception in the
    middle of a step leaves the last whole checkpoint alone, as the half-done step could not be resumed exactly.

    Raises:
        ValueError: if ``every_n_steps`` < 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._interrupted = False
        self._previous_handler: Any = None
        self._saved_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupted = False
        try:
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        except ValueError:  # not the main thread: its owner decides about signals
            self._previous_handler = None

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._saved_step
        if due or self._interrupted:
            self._save(trainer)
        if self._interrupted:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.training and not self._interrupted:
            progress = trainer.fit_loop.epoch_loop.batch_progress.current
            if progress.ready == progress.completed and trainer.global_step > 0:
                self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or trainer.log_dir is None:  # type: ignore[attr-defined]
            return
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=False)
