"""What a trial has logged so far, from the files of its run folder."""

import csv
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """The values of one metric in the order of steps, ``step`` the last step of anything, and all metrics' names."""

    values: tuple[float, ...] = ()
    step: int | None = None
    names: tuple[str, ...] = ()

    @property
    def finite(self) -> tuple[float, ...]:
        return tuple(value for value in self.values if math.isfinite(value))


def run_folder(trial: Path) -> Path | None:
    """The newest ``version_<n>`` of a trial's folder; None before there is one."""
    versions = [path for path in trial.glob("version_*") if path.is_dir()]
    return max(versions, key=lambda path: path.stat().st_mtime_ns, default=None)


def stamp(trial: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of all files that ``read`` looks at: where it has not changed, nothing has been logged."""
    run = run_folder(trial)
    if run is None:
        return ()
    found = []
    for file in _files(run):
        with suppress(FileNotFoundError):
            state = file.stat()
            found.append((str(file), state.st_size, state.st_mtime_ns))
    return tuple(found)


def read(trial: Path, metric: str) -> Reading:
    """What a trial has logged of ``metric``.

    ``metrics.csv`` may be read while it is written, and a resumed run repeats steps: the last row of a step counts. A
    sequence of tasks has a file for each. Where no file has the metric, it may be a column of ``results.csv``, of which
    the last row counts.
    """
    run = run_folder(trial)
    if run is None:
        return Reading()
    values: dict[tuple[int, int], float] = {}
    names: dict[str, None] = {}
    step = None
    for part, file in enumerate(_files(run)[1:]):
        for row in _rows(file):
            names |= dict.fromkeys(row)
            at = _number(row.get("step"))
            value = _number(row.get(metric))
            if at is not None:
                step = int(at)
            if at is not None and value is not None:
                values[part, int(at)] = value
    found = tuple(values[key] for key in sorted(values))
    if not found and (results := _rows(run / "results.csv")):
        names |= dict.fromkeys(results[0])
        last = _number(results[-1].get(metric))
        found = () if last is None else (last,)
    return Reading(found, step, tuple(name for name in names if name and name not in ("step", "epoch")))


def _files(run: Path) -> list[Path]:
    return [run / "results.csv", run / "metrics.csv", *sorted(run.glob("task_*/metrics.csv"))]


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    return list(csv.DictReader(whole.splitlines()))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # a text column of results.csv
        return None
