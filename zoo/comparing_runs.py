"""Run folders as ``python -m zoo compare`` reads them."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from zoo.callbacks.figures import read_curves
from zoo.callbacks.summary import FIT_SECONDS, read_rows

T = TypeVar("T")
FILES = ("config.yaml", "metrics.csv", "results.csv")


class Run(NamedTuple):
    """What a run folder holds; ``config`` is flat, with dotted keys, and ``missing`` are the files that are not there.

    ``broken`` names those that cannot be read, each with the reason; the run is without what they hold.
    ``curves`` are the points (step, value) by column of ``metrics.csv``; in a sequence of tasks, one task after
    another.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    results: list[dict[str, Any]]
    curves: dict[str, list[tuple[int, float]]]
    missing: tuple[str, ...]
    broken: tuple[str, ...] = ()

    @property
    def steps(self) -> int | None:
        """Optimiser steps: a test is logged with their number, the last of the training with one less."""
        ends = [points[-1][0] + (not name.startswith(("test/", "fit/"))) for name, points in self.curves.items()]
        return max(ends, default=None)

    @property
    def seconds(self) -> float | None:
        """Of all fits that ended; None where no time was logged."""
        times = [value for _, value in self.curves.get(FIT_SECONDS, [])]
        return sum(times) if times else None

    def best(self) -> tuple[float, int] | None:
        """The monitored metric's best value, and its step."""
        points = [point for point in self.curves.get(self.config.get("monitor") or "", []) if not math.isnan(point[1])]
        choose = min if self.config.get("monitor_mode") == "min" else max
        found = choose(points, key=lambda point: point[1], default=None)
        return found and (found[1], found[0])


def find_runs(words: Sequence[str]) -> list[Path]:
    """The version folders that are meant: themselves, the newest of a config's folder, or all trials of a sweep.

    Raises:
        FileNotFoundError: if one is no folder of a run.
        ValueError: if fewer than two runs are left.
    """
    found: dict[Path, None] = {}
    for word in words:
        folder = Path(word)
        trials = folder / "trials"
        for part in sorted(trials.iterdir()) if trials.is_dir() else [folder]:
            if part.is_dir() or part == folder:
                found.setdefault(_newest(part).resolve())
    if len(found) < 2:
        raise ValueError(f"{len(found)} run to compare: give at least two different run folders")
    return list(found)


def _newest(folder: Path) -> Path:
    versions = [path for path in folder.glob("version_*") if path.name[8:].isdigit() and path.is_dir()]
    newest = max(versions, key=lambda path: int(path.name[8:]), default=folder)
    if not any((newest / name).is_file() for name in (*FILES, "test.yaml", "task_00/metrics.csv")):
        raise FileNotFoundError(
            f"{folder} is no run: give a folder with {', '.join(FILES)} (such as runs/<config>/version_0), a config's "
            "folder, or a sweep's"
        )
    return newest


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs, named by the parts of their paths that differ."""
    parts = [folder.parts for folder in folders]
    start = _shared(parts)
    end = _shared([path[:start:-1] for path in parts])
    names = ["/".join(path[start : len(path) - end]) for path in parts]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """How many parts all paths begin with."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def _read(folder: Path, name: str) -> Run:
    broken: list[tuple[str, str]] = []

    def tried(read: Callable[[Path], T], file: Path, kind: str) -> T | None:
        try:
            return read(file) if file.is_file() else None
        except (OSError, ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            broken.append((kind, reason if str(file) in reason else f"{file}: {reason}"))
            return None

    fit = folder / "config.yaml"
    config = tried(_read_config, fit if fit.is_file() else folder / "test.yaml", "config.yaml") or {}
    results = tried(read_rows, folder / "results.csv", "results.csv") or []
    curves: dict[str, list[tuple[int, float]]] = {}
    start = 0
    for file in sorted(folder.glob("task_*/metrics.csv")) or [folder / "metrics.csv"]:
        own = tried(read_curves, file, "metrics.csv") or {}
        for column, points in own.items():
            curves.setdefault(column, []).extend((start + step, value) for step, value in points)
        start += 1 + max((points[-1][0] for points in own.values()), default=0)
    held = zip(FILES, (config, curves, results), strict=True)
    missing = tuple(kind for kind, content in held if not content and kind not in dict(broken))
    return Run(name, folder, config, results, curves, missing, tuple(reason for _, reason in broken))


def _read_config(file: Path) -> dict[str, Any]:
    """The dotted keys of a config; raises ``ValueError`` if the file is empty or no mapping."""
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not config or not isinstance(config, dict):
        raise ValueError(f"{file}: {'empty' if config is None else 'no config'}: must be a mapping of keys to values")
    return dict(_flat(config))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or key.endswith("init_args")):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        yield key, value
        return
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
