"""What the zoo holds: methods and checkpoints register beside their own code, configs are found on disk."""

import difflib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import zoo

_SHARED = {"callbacks", "language", "losses", "metrics", "nn", "retrieval"}
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
class Checkpoint:
    """Weights that load by name: a bundled ``file`` or a ``url``, its ``sha256``, and where they come from.

    ``config`` is the experiment that made them, ``metrics`` what it measured, ``licence`` that of the weights.
    """

    name: str
    file: str
    sha256: str
    config: str
    metrics: str
    licence: str
    url: str | None = None


_methods: dict[str, Method] = {}
_checkpoints: dict[str, Checkpoint] = {}


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


def register_checkpoint(checkpoint: Checkpoint) -> None:
    """Put a checkpoint into the catalogue. Raises ``ValueError`` if its name is taken by another."""
    if _checkpoints.setdefault(checkpoint.name, checkpoint) != checkpoint:
        raise ValueError(f"checkpoint name {checkpoint.name!r} is taken; choose another")


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


def checkpoints() -> list[Checkpoint]:
    """All checkpoints, by name."""
    import_families()
    return [_checkpoints[name] for name in sorted(_checkpoints)]


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


def overlays() -> list[str]:
    """Short names of the overlays, such as ``overlays/smoke``."""
    return sorted(f"overlays/{path.stem}" for path in (config_root() / "overlays").glob("*.yaml"))


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
    close = difflib.get_close_matches(short, configs() + overlays(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`python -m zoo list` shows all"
    raise FileNotFoundError(f"config {name!r} is neither a file nor a shipped config; {hint}")
