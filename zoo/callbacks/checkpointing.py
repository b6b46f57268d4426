"""The checkpoint to resume from, at points where a run can go on exactly."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

RANKS_AGREE_EVERY = 10  # steps between the questions of several ranks whether one was asked to stop


class KeepLast(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` every ``every_n_steps`` optimiser steps, after each epoch and on a stop.

    Ctrl-C finishes the optimiser step under way (on several ranks, up to ten), saves and stops; a second Ctrl-C
    stops at once. An exception in the middle of a step leaves the last whole checkpoint alone, as the half-done
    step could not be resumed exactly; so does one on several ranks, which saving would wait for.

    Raises:
        ValueError: if ``every_n_steps`` < 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._interrupted = False
        self._previous_handler: Any = None
        self._training = False
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupted = self._training = False
        try:
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)
        except ValueError:  # not the main thread: its owner decides about signals
            self._previous_handler = None

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training, self._step = True, trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        stop = self._interrupted
        if trainer.world_size > 1:
            stop = self._step % RANKS_AGREE_EVERY == 0 and trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or self._step % self.every_n_steps == 0:
            self._save(trainer)
        if stop:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._training and trainer.world_size == 1 and not self._interrupted:
            progress = trainer.fit_loop.epoch_loop.batch_progress.current
            if progress.ready == progress.completed and trainer.global_step > 0:
                self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _save(self, trainer: Trainer) -> None:
        log_dir = trainer.log_dir  # a broadcast: all ranks must ask
        if log_dir is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(log_dir) / "checkpoints" / "last.ckpt", weights_only=False)
