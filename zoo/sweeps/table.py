"""What a sweep shows while it runs: a live table in a terminal, else a line for each change."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from zoo.console import console

if TYPE_CHECKING:
    from zoo.sweeps.engine import LocalSweep

ROWS = 30
"""Trials in the live table; of more, the newest are shown."""
STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}


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
    """A value of a parameter in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Shows:
    """Shows a sweep; use as a context, which holds the live table."""

    def __init__(self, names: Sequence[str]) -> None:
        self._short = short_names(names)
        self._console = console()
        self.live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> "Shows":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def brief(self, values: Mapping[str, Any]) -> str:
        """``lr=0.01 width=64``"""
        return " ".join(f"{self._short[name]}={show_value(value)}" for name, value in values.items())

    def event(self, line: str) -> None:
        """Print what has happened; in a terminal above the table, and only what the table does not show."""
        if self.live is None:
            print(line, flush=True)
        elif "failed" in line or line.startswith("Stopping"):
            self.live.console.print(line, markup=False, highlight=False)

    def update(self, sweep: "LocalSweep") -> None:
        """Draw the table anew, where there is one."""
        if self.live is not None:
            self.live.update(self.table(sweep), refresh=True)

    def table(self, sweep: "LocalSweep") -> Table:
        """A row a trial: state, values, the metric's last value and the step of it."""
        metric, trials, best = sweep.file.metric.name, sweep.trials, sweep.best()
        title = f"{sweep.file.name}: {sum(t.state.is_finished() for t in trials)} of {sweep.total} trials"
        table = Table("trial", "state", *self._short.values(), metric, "step", title=title)
        running = {each.trial.number: each for each in sweep.running}
        for trial in trials[-ROWS:]:
            values = sweep.values(trial)
            last = next(reversed(trial.intermediate_values.values()), None) if trial.value is None else trial.value
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
