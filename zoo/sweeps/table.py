"""What a sweep shows while it runs: a live table in a terminal, else a line for each change."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Column, Table

from zoo.console import console

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from zoo.sweeps.engine import LocalSweep

FRAME = 6
"""Lines of a terminal that the table's title, header and borders take, and the cursor's."""
STATES = {
    "COMPLETE": "finished",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest endings that tell option names apart, ``init_args`` left out: ``lr`` for ``model.init_args.lr``."""
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in names}
    short = {}
    for name, own in parts.items():
        ends = (own[-length:] for length in range(1, len(own) + 1))
        free = (e for e in ends if all(other[-len(e) :] != e for key, other in parts.items() if key != name))
        short[name] = ".".join(next(free, own))
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def show_value(value: Any) -> str:
    """A value of a parameter in few characters; of a class path the class."""
    if isinstance(value, str) and re.fullmatch(r"(\w+\.)+[A-Z]\w*", value):
        return value.rpartition(".")[2]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_value(trial: "FrozenTrial") -> float | None:
    """A trial's result, or the last value that it has logged so far."""
    return next(reversed(trial.intermediate_values.values()), None) if trial.value is None else trial.value


def shown(numbers: Sequence[int], always: Collection[int], rows: int) -> list[int]:
    """Which of ``numbers`` a table of ``rows`` rows shows: those of ``always``, and the last of the others."""
    others = [number for number in numbers if number not in always]
    room = max(rows - len(always), 0)
    return sorted([*always, *others[len(others) - min(room, len(others)) :]])


class SweepDisplay:
    """Shows a sweep and its parameters ``names``; use as a context, which holds the live table."""

    def __init__(self, names: Sequence[str]) -> None:
        self._short = short_names(names)
        self._console = console()
        self.live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> "SweepDisplay":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def brief(self, values: Mapping[str, Any]) -> str:
        """``lr=0.01 width=64``"""
        return " ".join(f"{short}={show_value(values[name])}" for name, short in self._short.items())

    def event(self, line: str, important: bool = False) -> None:
        """Print what has happened; in a terminal above the table, and only the important: the table shows the rest."""
        if self.live is None:
            print(line, flush=True)
        elif important:
            self.live.console.print(line, markup=False, highlight=False)

    def update(self, sweep: "LocalSweep") -> None:
        """Draw the table anew, where there is one."""
        if self.live is not None:
            self.live.update(self.table(sweep), refresh=True)

    def table(self, sweep: "LocalSweep") -> Table:
        """A row a trial: state, values, the metric's last value and the step of it.

        In a terminal as many as it has lines for: the running ones, the best, and the newest.
        """
        records, metric = sweep.records, sweep.file.metric.name
        trials, best = records.trials, records.best()
        running = {each.trial.number: each for each in sweep.running}
        always = {*running} if best is None else {*running, best.number}
        rows = self._console.height - FRAME if self.live is not None else len(trials)
        numbers = shown(range(len(trials)), always, rows)
        hidden = f", {len(trials) - len(numbers)} of them not shown" if len(numbers) < len(trials) else ""
        title = f"{sweep.file.name}: {records.finished} of {sweep.total} trials{hidden}"
        headers = ("trial", "state", *self._short.values(), metric, "step")
        table = Table(*(Column(header, no_wrap=True) for header in headers), title=title)
        for trial in (trials[number] for number in numbers):
            values, last = records.values(trial), last_value(trial)
            state = STATES.get(trial.state.name, trial.state.name)
            step = running[trial.number].reading.step if trial.number in running else trial.user_attrs.get("step")
            table.add_row(
                f"{trial.number:04d}",
                "waiting" if state == "running" and trial.number not in running else state,
                *(show_value(values.get(name, "")) for name in self._short),
                "" if last is None else f"{last:.4f}",
                "" if step is None else str(step),
                style="bold green" if best is not None and trial.number == best.number else None,
            )
        return table
