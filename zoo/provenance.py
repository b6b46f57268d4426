"""What a run folder tells of a checkpoint in it: its experiment, versions of packages, and what it measured."""

import csv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import nn

import zoo
from zoo import catalogue

_OF_THE_RUN = ("run_dir", "run_name", "ckpt_path", "config", "weights_only")
_PLACES = ("default_root_dir", "save_dir", "dirpath")


def made_by(file: Path, module: nn.Module, config: str | None = None) -> dict[str, Any]:
    """The experiment that a checkpoint is of, None for a file outside of a run folder, and versions of packages."""
    packages = ["torch", "lightning"]
    if any(type(part).__name__ == "LanguageModel" for part in module.modules()):
        packages.append("transformers")
    parents = [p.name for p in file.resolve().parents]
    name = next(p for p in parents if p != "checkpoints" and not p.startswith(("version_", "task_")))
    shipped = [one for one in catalogue.configs() if one.endswith(f"/{name}")]
    own = name if parents[0] == "checkpoints" else None
    return {
        "config": config or (shipped[0] if len(shipped) == 1 else own),
        "versions": {"zoo-of-papers": zoo.__version__, **{package: version(package) for package in packages}},
    }


def _folders(file: Path) -> Iterator[Path]:
    """The run folder of a checkpoint and, of a task, that of its sequence."""
    parents = file.resolve().parents
    if parents[0].name == "checkpoints":
        yield parents[1]
        if parents[1].name.startswith("task_"):
            yield parents[2]


def experiment_of(file: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The run's config without places of its machine, None without any, and what else was left out, by its name."""
    config = next((folder / "config.yaml" for folder in _folders(file) if (folder / "config.yaml").is_file()), None)
    if config is None:
        return None, []
    dropped: list[str] = []
    content = catalogue.load_yaml(config.read_text(encoding="utf-8")) or {}
    content = {key: value for key, value in content.items() if key not in _OF_THE_RUN}
    return _portable(content, "", dropped), dropped


def _portable(content: Any, name: str, dropped: list[str]) -> Any:
    if isinstance(content, list):
        return [_portable(value, f"{name}{at}.", dropped) for at, value in enumerate(content)]
    if not isinstance(content, dict):
        return content
    kept = {}
    for key, value in content.items():
        if key in _PLACES:
            continue
        if any(_is_place(one) for one in (value if isinstance(value, list) else [value])):
            dropped.append(f"{name}{key}")
        else:
            kept[key] = _portable(value, f"{name}{key}.", dropped)
    return kept


def _is_place(value: Any) -> bool:
    """Whether it is a path that only one machine has."""
    if not isinstance(value, str):
        return False
    paths = PurePosixPath(value), PureWindowsPath(value)
    return value.startswith("~/") or any(path.is_absolute() and path != path.parent for path in paths)


def results_of(file: Path) -> list[dict[str, str]]:
    """Rows of the run's ``results.csv`` if it was this file that was tested last; else none, with a warning."""
    from lightning.pytorch.utilities import rank_zero_warn

    folder = next(_folders(file), None)
    if folder is None or not (folder / "results.csv").is_file():
        return []
    results = folder / "results.csv"
    tested, since = _tested(folder)
    if tested == file.name and max(since, file.stat().st_mtime_ns) <= results.stat().st_mtime_ns:
        return list(csv.DictReader(results.read_text(encoding="utf-8").splitlines()))
    rank_zero_warn(f"{results} is not of {file.name}: the card states no measurements; test the file to have them")
    return []


def _tested(folder: Path) -> tuple[str, int]:
    """Name of the file in a run folder that was tested last, and the time when its fit or its own test began."""
    fit, test = folder / "config.yaml", folder / "test.yaml"
    began = fit.stat().st_mtime_ns if fit.is_file() else 0
    # a test of a task is one of the whole sequence, each by its best weights
    if test.is_file() and test.stat().st_mtime_ns >= began and not folder.name.startswith("task_"):
        given = catalogue.load_yaml(test.read_text(encoding="utf-8")) or {}
        return Path(given.get("ckpt_path") or "").name, test.stat().st_mtime_ns
    return "best.ckpt" if (folder / "checkpoints" / "best.ckpt").is_file() else "last.ckpt", began
