"""Run folders as ``python -m zoo compare`` reads them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.callbacks.figures import read_curves
from zoo.callbacks.summary import FIT_SECONDS, read_rows

FILES = ("config.yaml", "metrics.csv", "results.csv")


class Run(NamedTuple):
    """What a run folder holds; ``config`` is flat, with dotted keys, and ``missing`` are the files that are not there.

    ``curves`` are the points (step, value) by column of ``metrics.csv``; in a sequence of tasks, one task after
    another.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    results: list[dict[str, Any]]
    curves: dict[str, list[tuple[int, float]]]
    missing: tuple[str, ...]

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
    tasks = sorted(folder.glob("task_*/metrics.csv"))
    config = next((file for file in (folder / "config.yaml", folder / "test.yaml") if file.is_file()), None)
    results = folder / "results.csv"
    curves: dict[str, list[tuple[int, float]]] = {}
    start = 0
    for file in tasks or [folder / "metrics.csv"] * (folder / "metrics.csv").is_file():
        own = read_curves(file)
        for column, points in own.items():
            curves.setdefault(column, []).extend((start + step, value) for step, value in points)
        start += 1 + max((points[-1][0] for points in own.values()), default=0)
    return Run(
        name,
        folder,
        {} if config is None else dict(_flat(yaml.safe_load(config.read_text(encoding="utf-8")))),
        read_rows(results) if results.is_file() else [],
        curves,
        tuple(
            file
            for file, there in zip(FILES, (config is not None, bool(curves), results.is_file()), strict=True)
            if not there
        ),
    )


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
