"""The local engine: runs trials side by side, stops them, and goes on where a killed sweeper stopped."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import filelock
import optuna
from optuna.trial import Trial, TrialState

from zoo.sweeps import space
from zoo.sweeps.processes import Child, cores, has_ended_well, worker_env
from zoo.sweeps.readings import Reading, stamp
from zoo.sweeps.records import Records
from zoo.sweeps.sweep_file import SweepFile
from zoo.sweeps.table import SweepDisplay

FAILURES = 3
"""As many trials that fail before any has ended well stop a sweep."""


class SweepFailed(Exception):
    """No trial has ended well, and more of them would not help."""


@dataclass
class Running:
    """A trial under way: what Optuna knows of it, its process, and the worker whose place it takes."""

    trial: Trial
    folder: Path
    child: Child
    worker: int
    reading: Reading = field(default_factory=Reading)
    stamp: tuple[tuple[str, int, int], ...] = ()
    stopped: bool = False


class LocalSweep:
    """A sweep in its folder, of which ``records`` are known while and after it runs.

    Args:
        file: the checked sweep file.
        folder: of this sweep, made if needed.
        total: trials in all, those of earlier sessions included; a grid has at most its points.
        workers: trials at a time.
        display: told of each change.
        devices: of GPUs, shared by the workers.
        poll: seconds between two looks at the running trials.
        retry_failed: run the values of failed trials again. So it is, too, where no trial has ended well so far.
        seed: of the draws; None for the folder's own.
    """

    records: Records

    def __init__(
        self,
        file: SweepFile,
        folder: Path,
        total: int,
        workers: int,
        display: SweepDisplay,
        devices: Sequence[str] = (),
        poll: float = 0.5,
        retry_failed: bool = False,
        seed: int | None = None,
    ) -> None:
        self.file, self.folder, self.workers, self.devices, self.poll = file, folder, workers, devices, poll
        self.total = min(total, space.grid_size(space.grid_axes(file.parameters))) if file.method == "grid" else total
        self.display, self.retry_failed, self.seed = display, retry_failed, seed
        self.running: list[Running] = []
        self._interrupts = 0
        self._failed = 0  # in this session

    def run(self) -> bool:
        """Run all trials that are missing. Returns whether all have ended; False after Ctrl-C.

        Raises:
            SweepFailed: if the first trials have all failed, or one has ended without the metric.
            ValueError: if the folder is in use, or belongs to another sweep file or seed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / "lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"{self.folder} is in use by another sweep command; wait for it, or stop it") from None
        with held, _quiet(), self._signals():
            self.records = Records(self.file, self.folder, self.seed)
            if self.retry_failed or not self.records.any_ended_well:
                self.records.retry_failed()
            try:
                return self._loop()
            finally:
                self._stop_all()

    def _loop(self) -> bool:
        left = self._recover()
        self.display.update(self)
        while True:
            while not self._interrupts and self._free() is not None and not self.records.reached():
                if left:
                    self._begin(left.pop(0), again=True)
                elif self.records.waiting or self.records.drawn < self.total:
                    self._begin(self.records.ask())
                else:
                    break
            if not self.running:
                self.display.update(self)
                if not self._interrupts and not self.records.any_ended_well:
                    raise SweepFailed(f"no trial has succeeded; the last has failed with:\n{self._last_error()}")
                return not self._interrupts
            sleep(self.poll)
            for running in list(self.running):
                self._hurry(running.child)
                self._look(running)
            self.display.update(self)
            if self._failed >= FAILURES and not self.records.any_ended_well:
                raise SweepFailed(f"the first {self._failed} trials failed, the last with:\n{self._last_error()}")

    def _recover(self) -> list[Trial]:
        """Trials that were under way when an earlier sweeper ended; what still runs of them is stopped."""
        left = []
        for trial in self.records.interrupted():
            folder = self.records.trial_folder(trial.number)
            child = Child.find(folder)
            if child is not None:
                self.display.event(f"{folder.name} still runs: stopping it, to go on with it here", important=True)
                child.stop()
                self._wait(child)
            if has_ended_well(folder):
                self._record(trial, self.records.read(trial), code=0)
            else:
                left.append(trial)
        return left

    def _begin(self, trial: Trial, again: bool = False) -> None:
        values, folder = self.records.values(self.records.trials[trial.number]), self.records.trial_folder(trial.number)
        words = [*self.file.words(values), "--run_dir", str(folder.parent), "--run_name", folder.name]
        if again:
            words += ["--ckpt_path", "last"]
        worker = self._free()
        assert worker is not None
        # W&B's trials belong to its own sweeps: here a logger in the config stays silent, unless it was asked for
        share = worker_env(worker, self.workers, self.devices, cores())
        child = Child.start(words, folder, {"WANDB_MODE": "disabled", **os.environ, **share})
        self.running.append(Running(trial, folder, child, worker))
        self.display.event(f"{folder.name} {'goes on' if again else 'starts'}: {self.display.brief(values)}")

    def _free(self) -> int | None:
        taken = {running.worker for running in self.running}
        return next((worker for worker in range(self.workers) if worker not in taken), None)

    def _look(self, running: Running) -> None:
        """Read what a trial has logged, stop it if it lags, and record it if it has ended."""
        ended = running.child.ended()  # before reading: all that it has written is there then
        now = stamp(running.folder)
        if now != running.stamp:
            running.stamp, running.reading = now, self.records.read(running.trial)
        if ended:
            running.child.kill()  # its command may have outlived the keeper
            self.running.remove(running)
            if not self._interrupts or running.stopped or running.child.code == 0:
                self._record(running.trial, running.reading, running.child.code, running.stopped)
        elif not running.stopped and self.records.should_stop(running.trial, running.reading):
            running.stopped = True
            running.child.stop()
        else:
            running.child.check()

    def _record(self, trial: Trial, reading: Reading, code: int | None, stopped: bool = False) -> None:
        state, what = self.records.record(trial, reading, code, stopped)
        name, failed = self.records.trial_folder(trial.number).name, state == TrialState.FAIL
        self.display.event(f"{name} {what}", important=failed)
        self._failed += failed
        if failed and code == 0 and not self.records.any_value:
            raise SweepFailed(f"{name} {what}; mend metric in {self.file.path} and give the same command")

    def _last_error(self) -> str:
        failed = [trial for trial in self.records.trials if trial.state == TrialState.FAIL]
        return str(failed[-1].user_attrs["error"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Counts Ctrl-C and SIGTERM: the first stops trials softly, the second at once."""

        def interrupt(number: int, frame: Any) -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                line = "Stopping: trials save where they are; press Ctrl-C again to stop at once."
                self.display.event(line, important=True)

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hurry(self, child: Child) -> None:
        if self._interrupts:
            child.stop() if self._interrupts == 1 else child.kill()

    def _wait(self, child: Child) -> None:
        """Wait for a child that was asked to stop."""
        while not child.ended():
            self._hurry(child)
            child.check()
            sleep(0.05)
        child.kill()

    def _stop_all(self) -> None:
        for running in self.running:
            running.child.stop()
        for running in self.running:
            self._wait(running.child)
        self.running.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log of each trial is the table's work; its warnings are about interfaces that may change."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
    sys.stdout.flush()
