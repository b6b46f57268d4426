"""The local engine: asks Optuna for values, runs trials side by side, and goes on where a killed sweeper stopped."""

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
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from zoo.sweeps import space
from zoo.sweeps.processes import Child, cores, has_ended_well, last_lines, share
from zoo.sweeps.readings import Reading, read
from zoo.sweeps.sweep_file import SweepFile
from zoo.sweeps.table import Shows

FAILURES = 3
"""As many trials that fail before any has ended well stop a sweep."""
ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


class SweepFailed(ValueError):
    """Every trial so far has failed."""


@dataclass
class Running:
    """A trial under way: what Optuna knows of it, its process, and the worker whose place it takes."""

    trial: Trial
    values: dict[str, Any]
    folder: Path
    child: Child
    worker: int
    reading: Reading = field(default_factory=Reading)
    lags: bool = False


class LocalSweep:
    """A sweep in its folder: ``sweep.yaml``, ``journal.log`` and ``trials/trial_<n>/``.

    Args:
        file: the checked sweep file.
        folder: of this sweep, made if needed.
        total: trials in all, those of earlier sessions included; a grid has at most its points.
        workers: trials at a time.
        devices: of GPUs, shared by the workers.
        shows: told of each change.
        poll: seconds between two looks at the running trials.

    Raises:
        ValueError: if the folder is in use, belongs to another sweep file, or ``total`` or ``workers`` is below 1.
    """

    def __init__(
        self,
        file: SweepFile,
        folder: Path,
        total: int,
        workers: int,
        shows: Shows,
        devices: Sequence[str] = (),
        poll: float = 0.5,
    ) -> None:
        for name, value in (("trials", total), ("workers", workers)):
            if value < 1:
                raise ValueError(f"--{name} {value}: must be at least 1")
        self.file, self.folder, self.workers, self.devices, self.poll = file, folder, workers, devices, poll
        self.total = min(total, len(space.grid(file.parameters))) if file.method == "grid" else total
        self.shows = shows
        self.running: list[Running] = []
        self._distributions = space.distributions(file.parameters, file.method)
        self._presses = 0
        self._failed = 0  # in this session

    def run(self) -> bool:
        """Run all trials that are missing. Returns whether all have ended; False after Ctrl-C.

        Raises:
            SweepFailed: if the first trials have all failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / "lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"{self.folder} is in use by another sweep command; wait for it, or stop it") from None
        with held, _quiet(), self._signals():
            self._check_file()
            self.study = self._open_study()
            try:
                return self._loop()
            finally:
                self._stop_all()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of a trial as its command has them, by name."""
        given = self.file.parameters
        drawn = {
            name: trial.params.get(name) for name in given if name in trial.params or name not in self._distributions
        }
        return {name: space.decode(given[name], value) for name, value in drawn.items()}

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"trial_{number:04d}"

    def best(self) -> FrozenTrial | None:
        """The trial with the best last value of those that ran to their end."""
        done = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = -1 if self.file.metric.goal == "maximize" else 1
        return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def _check_file(self) -> None:
        copy, free = self.folder / "sweep.yaml", {"run_cap", "name", "description"}
        if copy.is_file():
            old = yaml.safe_load(copy.read_text(encoding="utf-8"))
            changed = sorted(k for k in old.keys() | self.file.content.keys() if old.get(k) != self.file.content.get(k))
            if changed := [key for key in changed if key not in free]:
                raise ValueError(
                    f"{self.file.path}: {', '.join(changed)} changed since {copy} was made; take the change back to go "
                    f"on, give another --sweep_dir or file name, or remove {self.folder} to begin again"
                )
        else:
            copy.write_text(self.file.path.read_text(encoding="utf-8"), encoding="utf-8")

    def _open_study(self) -> optuna.Study:
        journal = self.folder / "journal.log"
        if journal.is_file():  # a killed sweeper may have left half a line and Optuna's own lock
            whole = journal.read_bytes()
            os.truncate(journal, whole.rfind(b"\n") + 1)
            Path(f"{journal}.lock").unlink(missing_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        goal = StudyDirection.MAXIMIZE if self.file.metric.goal == "maximize" else StudyDirection.MINIMIZE
        return optuna.create_study(study_name=self.file.name, storage=storage, direction=goal, load_if_exists=True)

    def _loop(self) -> bool:
        left = self._recover()
        self._show()
        while True:
            waiting = self.total > len(self.trials)
            while not self._presses and not self._reached() and (left or waiting) and self._free() is not None:
                self._begin(left.pop(0), again=True) if left else self._begin(self._ask())
                waiting = self.total > len(self.trials)
            if not self.running:
                self._show()
                return not self._presses
            sleep(self.poll)
            for running in list(self.running):
                self._hurry(running.child)
                self._look(running)
            self._show()
            if self._failed >= FAILURES and not any(trial.state in ENDED_WELL for trial in self.trials):
                failed = [trial for trial in self.trials if trial.state == TrialState.FAIL][-1]
                raise SweepFailed(
                    f"the first {self._failed} trials failed, the last with:\n{failed.user_attrs['error']}"
                )

    def _recover(self) -> list[Trial]:
        """Trials that were under way when an earlier sweeper ended; what still runs of them is stopped."""
        left = []
        for number, trial_id in [(t.number, t._trial_id) for t in self.trials if t.state == TrialState.RUNNING]:
            folder = self.trial_folder(number)
            child = Child.find(folder)
            if child is not None:
                self.shows.event(f"{folder.name} still runs: stopping it, to go on with it here")
                child.stop()
                self._wait(child)
            self.study.sampler = space.sampler(self.file.method, self.file.parameters, number)
            trial = Trial(self.study, trial_id)
            if has_ended_well(folder):
                self._record(trial, folder, self._read(trial, folder), code=0)
            else:
                left.append(trial)
        return left

    def _ask(self) -> Trial:
        self.study.sampler = space.sampler(self.file.method, self.file.parameters, len(self.trials))
        return self.study.ask()

    def _begin(self, trial: Trial, again: bool = False) -> None:
        self.study.sampler = space.sampler(self.file.method, self.file.parameters, trial.number)
        for name, distribution in self._distributions.items():
            trial._suggest(name, distribution)  # what it already has, it keeps
        values, folder = self.values(self.trials[trial.number]), self.trial_folder(trial.number)
        words = [*self.file.words(values), "--run_dir", str(folder.parent), "--run_name", folder.name]
        if again:
            words += ["--ckpt_path", "last"]
        worker = self._free()
        assert worker is not None
        # W&B's trials belong to its own sweeps: here a logger in the config stays silent, unless it was asked for
        environment = {"WANDB_MODE": "disabled", **os.environ, **share(worker, self.workers, self.devices, cores())}
        child = Child.start(words, folder, environment)
        self.running.append(Running(trial, values, folder, child, worker))
        self.shows.event(f"{folder.name} {'goes on' if again else 'starts'}: {self.shows.brief(values)}")

    def _free(self) -> int | None:
        taken = {running.worker for running in self.running}
        return next((worker for worker in range(self.workers) if worker not in taken), None)

    def _look(self, running: Running) -> None:
        """Read what a trial has logged, stop it if it lags, and record it if it has ended."""
        ended = running.child.ended()  # before reading: all that it has written is there then
        running.reading = self._read(running.trial, running.folder)
        if ended:
            self.running.remove(running)
            if not self._presses or running.lags or running.child.code == 0:
                self._record(running.trial, running.folder, running.reading, running.child.code, running.lags)
        elif not running.lags and self._lags(running):
            running.lags = True
            running.child.stop()
        else:
            running.child.check()

    def _read(self, trial: Trial, folder: Path) -> Reading:
        """What a trial has logged; Optuna is told what is new."""
        reading = read(folder, self.file.metric.name)
        known = len(self.trials[trial.number].intermediate_values)
        for step, value in enumerate(reading.finite[known:], start=known + 1):
            trial.report(value, step)
        return reading

    def _lags(self, running: Running) -> bool:
        if self.file.stopping is None:
            return False
        others = [
            list(trial.intermediate_values.values()) for trial in self.trials if trial.number != running.trial.number
        ]
        return self.file.stopping.lags(running.reading.finite, others, self.file.metric.goal)

    def _record(self, trial: Trial, folder: Path, reading: Reading, code: int | None, lags: bool = False) -> None:
        """Tell Optuna how a trial has ended."""
        name, metric = folder.name, self.file.metric.name
        trial.set_user_attr("step", reading.step)
        if lags and code != 0:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.shows.event(f"{name} stopped early: {metric} {reading.finite[-1]:.6g}")
        elif code == 0 and reading.values and reading.values[-1] in reading.finite:
            self.study.tell(trial, reading.values[-1])
            self.shows.event(f"{name} finished: {metric} {reading.values[-1]:.6g}")
        else:
            if code != 0:
                reason = f"exit status {code}: {last_lines(folder) or 'nothing on stderr'}"
            elif reading.values:
                reason = f"{metric} ended as {reading.values[-1]}"
            else:
                reason = f"it has not logged {metric}, but {', '.join(reading.names) or 'nothing'}"
            trial.set_user_attr("error", reason)
            self.study.tell(trial, state=TrialState.FAIL)
            self.shows.event(f"{name} failed: {reason}")
            self._failed += 1

    def _reached(self) -> bool:
        best = self.best()
        return best is not None and self.file.metric.reached(best.value or 0.0)

    def _show(self) -> None:
        self.shows.update(self)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Counts Ctrl-C and SIGTERM: the first stops trials softly, the second at once."""

        def press(number: int, frame: Any) -> None:
            self._presses += 1
            if self._presses == 1:
                self.shows.event("Stopping: trials save where they are; press Ctrl-C again to stop at once.")

        before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hurry(self, child: Child) -> None:
        if self._presses:
            child.stop() if self._presses == 1 else child.kill()

    def _wait(self, child: Child) -> None:
        """Wait for a child that was asked to stop."""
        while not child.ended():
            self._hurry(child)
            child.check()
            sleep(0.05)

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
