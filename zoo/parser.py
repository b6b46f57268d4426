"""The parser of the command line: short names of configs, and what is wrong in a few lines."""

import difflib
import inspect
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from zoo import catalogue


class ZooParser(LightningArgumentParser):
    """Says what is wrong without a page of usage, and adds the closest names to an unknown key or class."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:  # type: ignore[override]
        """As the parser's, which hands null of an argument of a part of a part on as the word None."""
        if isinstance(args, list):
            args = [f"{word[:-4]}null" if isinstance(word, str) and word.endswith("=None") else word for word in args]
        return super().parse_args(args, *more, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "Did you mean" not in message:
            message += _suggestion(message)
        if not self.exit_on_error:
            super().error(message, ex)
        prog = getattr(ex, "subcommand_parser", self).prog
        self.exit(2, f"error: {message}\n`{prog.replace(' [options]', '')} --help` lists all options\n")


def with_config_paths(args: Sequence[str]) -> list[str]:
    """Replace short config names after ``--config`` by the files they stand for.

    Raises:
        SystemExit: if a name fits no file, with the closest ones.
    """
    result: list[str] = []
    for word in args:
        flag, equals, value = word.partition("=")
        if result and result[-1] in ("--config", "-c"):
            result.append(_config_file(word))
        elif equals and flag == "--config":
            result.append(f"--config={_config_file(value)}")
        else:
            result.append(word)
    return result


def _config_file(name: str) -> str:
    if name.lstrip().startswith("{"):
        return name
    try:
        return str(catalogue.find_config(name))
    except FileNotFoundError as error:
        raise SystemExit(f"python -m zoo: error: {error}") from None


def _suggestion(message: str) -> str:
    """The closest known names to the unknown one that a parser's message quotes, or an empty string."""
    patterns = (
        r"Option '([\w.]+)' is not accepted",
        r"Key '([\w.]+)' is not expected",
        r"[Uu]nrecognized arguments: -*([\w.]+)",
        r"Expected a dot import path string: ([\w.]+)",
        r"class_path '?([\w.]+)'?",
    )
    unknown = next((m.group(1) for p in patterns if (m := re.search(p, message))), None)
    if unknown is None:
        return ""
    last = unknown.rpartition(".")[2]
    close = [name for name in difflib.get_close_matches(last, _known_names(), n=3) if name != last]
    return f"\nDid you mean {' or '.join(close)}?" if close else ""


def _known_names() -> set[str]:
    """Class and argument names of the zoo's own classes and of the Trainer."""
    names = set(inspect.signature(Trainer).parameters)
    todo: list[type] = [LightningModule, LightningDataModule]
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(("zoo.", "datamodules."))]
    for module in modules:
        todo += [c for c in vars(module).values() if inspect.isclass(c) and c.__module__.startswith(("zoo", "datamod"))]
    for cls in todo:
        names.add(cls.__name__)
        with suppress(ValueError):  # subclasses of builtin types have no signature
            names.update(p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs"))
    return names
