"""The trials of a local sweep: drawn and kept by Optuna in the sweep's folder, recorded as they log and end."""

import os
import secrets
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from zoo.sweeps import space
from zoo.sweeps.processes import last_lines
from zoo.sweeps.readings import Reading, read
from zoo.sweeps.sweep_file import DESCRIBING, SweepFile

ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)
RETRY_OF = "retry_of"
"""Attribute of a trial that runs the values of a failed one again: the number of that one."""


class Records:
    """What is known of a sweep's trials: ``sweep.yaml``, ``journal.log`` and ``trials/trial_<n>/`` of its folder.

    Args:
        file: the checked sweep file.
        folder: of this sweep.
        seed: of the draws; None for the one that the folder has, or a new one.

    Raises:
        ValueError: if the folder belongs to another sweep file, or to another seed.
    """

    def __init__(self, file: SweepFile, folder: Path, seed: int | None = None) -> None:
        self.file, self.folder = file, folder
        self._distributions = space.distributions(file.parameters, file.method)
        self.study = self._open_study()
        self._check_file()
        self._set_goal()
        self.seed = self._keep_seed(seed)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def drawn(self) -> int:
        """The number of trials, without those that run the values of a failed one again."""
        return sum(RETRY_OF not in trial.user_attrs for trial in self.trials)

    @property
    def finished(self) -> int:
        """The number of trials that have ended, a failed one not counted where it is run again."""
        again = {trial.user_attrs.get(RETRY_OF) for trial in self.trials}
        return sum(trial.state.is_finished() and trial.number not in again for trial in self.trials)

    @property
    def waiting(self) -> bool:
        """Whether the values of a failed trial wait to be run again."""
        return any(trial.state == TrialState.WAITING for trial in self.trials)

    @property
    def any_ended_well(self) -> bool:
        return any(trial.state in ENDED_WELL for trial in self.trials)

    @property
    def any_value(self) -> bool:
        """Whether any trial has logged the metric."""
        return any(trial.value is not None or trial.intermediate_values for trial in self.trials)

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

    def reached(self) -> bool:
        """Whether a trial has reached the metric's target."""
        best = self.best()
        return best is not None and self.file.metric.reached(best.value or 0.0)

    def ask(self) -> Trial:
        """A new trial with its values; one that waits to be run again goes first."""
        trial = self.study.ask()
        self._draw(trial)
        return trial

    def interrupted(self) -> list[Trial]:
        """Trials that were under way when an earlier sweeper ended, with their values."""
        found = [Trial(self.study, trial._trial_id) for trial in self.trials if trial.state == TrialState.RUNNING]
        for trial in found:
            self._draw(trial)
        return found

    def retry_failed(self) -> None:
        """Let the values of all failed trials wait to be run again, each as a new trial."""
        again = {trial.user_attrs.get(RETRY_OF) for trial in self.trials}
        for trial in self.trials:
            if trial.state == TrialState.FAIL and trial.number not in again:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})

    def read(self, trial: Trial) -> Reading:
        """What a trial has logged; Optuna is told what is new."""
        reading = read(self.trial_folder(trial.number), self.file.metric.name)
        known = len(self.trials[trial.number].intermediate_values)
        for step, value in enumerate(reading.finite[known:], start=known + 1):
            trial.report(value, step)
        return reading

    def should_stop(self, trial: Trial, reading: Reading) -> bool:
        """Whether a running trial lags too far behind the others."""
        if self.file.stopping is None:
            return False
        others = [list(other.intermediate_values.values()) for other in self.trials if other.number != trial.number]
        return self.file.stopping.should_stop(reading.finite, others, self.file.metric.goal)

    def record(self, trial: Trial, reading: Reading, code: int | None, stopped: bool = False) -> tuple[TrialState, str]:
        """Record how a trial has ended.

        Args:
            trial: the trial.
            reading: all that it has logged.
            code: its exit status.
            stopped: whether it was stopped for lagging behind.

        Returns:
            Its state, and what has happened in words.
        """
        metric = self.file.metric.name
        trial.set_user_attr("step", reading.step)
        if stopped and code != 0:
            self.study.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED, f"stopped early: {metric} {reading.finite[-1]:.6g}"
        if code == 0 and reading.values and reading.values[-1] in reading.finite:
            self.study.tell(trial, reading.values[-1])
            return TrialState.COMPLETE, f"finished: {metric} {reading.values[-1]:.6g}"
        if code != 0:
            reason = f"exit status {code}: {last_lines(self.trial_folder(trial.number)) or 'nothing on stderr'}"
        elif reading.values:
            reason = f"{metric} ended as {reading.values[-1]}"
        else:
            reason = f"it has not logged {metric}, but {', '.join(reading.names) or 'nothing'}"
        trial.set_user_attr("error", reason)
        self.study.tell(trial, state=TrialState.FAIL)
        return TrialState.FAIL, f"failed: {reason}"

    def _draw(self, trial: Trial) -> None:
        place = sum(RETRY_OF not in earlier.user_attrs for earlier in self.trials[: trial.number])
        self.study.sampler = space.sampler(self.file.method, self.file.parameters, self.seed, place)
        for name, distribution in self._distributions.items():
            trial._suggest(name, distribution)  # what it already has, it keeps

    def _open_study(self) -> optuna.Study:
        journal = self.folder / "journal.log"
        if journal.is_file():  # a killed sweeper may have left half a line and Optuna's own lock
            whole = journal.read_bytes()
            os.truncate(journal, whole.rfind(b"\n") + 1)
            Path(f"{journal}.lock").unlink(missing_ok=True)
        self._storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        return self._create()

    def _create(self) -> optuna.Study:
        return optuna.create_study(
            study_name=self.file.name, storage=self._storage, direction=self._goal, load_if_exists=True
        )

    @property
    def _goal(self) -> StudyDirection:
        return StudyDirection.MAXIMIZE if self.file.metric.goal == "maximize" else StudyDirection.MINIMIZE

    def _check_file(self) -> None:
        copy, free = self.folder / "sweep.yaml", {"run_cap"} | DESCRIBING
        if not self.any_value:
            free.add("metric")
        if copy.is_file():
            old = yaml.safe_load(copy.read_text(encoding="utf-8"))
            changed = sorted(k for k in old.keys() | self.file.content.keys() if old.get(k) != self.file.content.get(k))
            if changed := [key for key in changed if key not in free]:
                raise ValueError(
                    f"{self.file.path}: {', '.join(changed)} changed since {copy} was made; take the change back to go "
                    f"on, give another --sweep_dir or file name, or remove {self.folder} to begin again"
                )
        copy.write_text(self.file.path.read_text(encoding="utf-8"), encoding="utf-8")

    def _set_goal(self) -> None:
        """Make the study anew if its goal was mended before any trial had a value: Optuna cannot change it."""
        if self.study.direction == self._goal:
            return
        trials, attributes = self.study.get_trials(), self.study.user_attrs
        optuna.delete_study(study_name=self.file.name, storage=self._storage)
        self.study = self._create()
        self.study.add_trials(trials)
        for name, value in attributes.items():
            self.study.set_user_attr(name, value)

    def _keep_seed(self, seed: int | None) -> int:
        kept = self.study.user_attrs.get("seed")
        if kept is None:
            kept = secrets.randbelow(2**31) if seed is None else seed
            self.study.set_user_attr("seed", kept)
        if seed not in (None, kept):
            raise ValueError(f"--seed {seed}: {self.folder} has seed {kept}; leave --seed out to go on")
        return int(kept)
