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
        if "Did you mean" not in message and (more := _suggestion(message)).strip() not in message:
            message += more
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
    """The closest names to the unknown one that a parser's message quotes, what a class takes, or an empty string."""
    if option := _refused(message):
        path, unknown = option
        module, _, owner = path.rpartition(".")
        known = _names_taken_by(getattr(sys.modules.get(module), owner, None))
    elif word := re.search(r"[Uu]nrecognized arguments: --trainer\.(\w+)", message):
        owner, unknown, known = "Trainer", word[1], _names_taken_by(Trainer)
    else:
        patterns = (
            r".Option '([\w.]+)' is not accepted",  # alone it is a part's message, which its owner's will hold
            r"Key '([\w.]+)' is not expected",
            r"[Uu]nrecognized arguments: -*([\w.]+)",
            r"Expected a dot import path string: ([\w.]+)",
            r"class_path '?([\w.]+)'?(?!.*Option ')",
        )
        unknown = next((m[1] for p in patterns if (m := re.search(p, message))), "").rpartition(".")[2]
        owner, known = "", set()
    if unknown and not known:
        owner, known = "", _known_names() - {unknown}
    plain = {name.lower(): name for name in sorted(known)}
    if close := [plain[name] for name in difflib.get_close_matches(unknown.lower(), plain, n=3)]:
        return f"\nDid you mean {' or '.join(close)}?"
    return f"\n{owner} takes {', '.join(sorted(known))}" if owner and known else ""


def _refused(message: str) -> tuple[str, str] | None:
    """The path of the class and the option that it does not accept, by the innermost of a parser's messages."""
    if found := re.findall(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        return found[-1]  # type: ignore[no-any-return]
    of_callable = re.search(r"Option '([\w.]+)' is not accepted\. Got value: \w+\(class_path='([\w.]+)'", message)
    return (of_callable[2], of_callable[1]) if of_callable else None


def _names_taken_by(cls: Any) -> set[str]:
    """The arguments of a class; none for what is no class, and where it hands further ones on."""
    parameters = inspect.signature(cls).parameters if inspect.isclass(cls) else {}
    return set() if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else set(parameters)


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
