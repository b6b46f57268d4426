"""What is wrong with a sweep before its first trial: the command, the options, the types of their values, the goal."""

import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from zoo.cli import ZooCLI, build
from zoo.parser import with_config_paths
from zoo.sweeps.parameters import SETTINGS, Parameter
from zoo.sweeps.space import decode
from zoo.sweeps.sweep_file import SweepFile


class _Parser(ZooCLI):
    """The command line that parses and does nothing else."""

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def check(file: SweepFile) -> None:
    """Parse the command once for each value, or end of a range, with first values for the others. No data are read.

    A command other than ``python -m zoo fit`` is only looked up.

    Raises:
        ValueError: names the parameter, the value and its type, or what else is wrong.
    """
    try:
        _check(file)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _check(file: SweepFile) -> None:
    probes = {name: list(probe(parameter)) for name, parameter in file.parameters.items()}
    first = {name: values[0] for name, values in probes.items() if values}
    _check_program(file, first)
    if zoo_words(file.words(first)) is None:
        return
    parse = _parser(file, first)
    if _refusal(parse, file, first) is not None:
        ordered = sorted(first.items(), key=lambda item: "." in item[0])  # a config before what it is about
        for count, (name, _) in enumerate(ordered, start=1):  # which of them is it
            _try(parse, file, name, dict(ordered[:count]))
    for name, values in probes.items():
        for value in values[1:]:
            _try(parse, file, name, {**first, name: value})


def probe(parameter: Parameter) -> Iterator[Any]:
    """The values to try: all of a list, both ends of a range, and what lies between where that can be a fraction.

    None of a distribution that W&B alone can draw from.
    """
    kind, given = parameter.distribution, parameter.settings
    if kind == "constant":
        yield given["value"]
    elif kind == "categorical":
        yield from given["values"]
    elif kind in SETTINGS:
        inside = [] if kind == "int_uniform" else [given["min"] + (given["max"] - given["min"]) * 0.618]
        yield from (decode(parameter, at) for at in [given["min"], given["max"], *inside])


def zoo_words(words: Sequence[str]) -> list[str] | None:
    """What follows ``python -m zoo`` in a command that fits; None for any other command."""
    for at, word in enumerate(words[:-1]):
        if (word == "zoo" or word.endswith("zoo/__main__.py")) and words[at + 1] == "fit":
            return list(words[at + 1 :])
    return None


def _check_program(file: SweepFile, values: Mapping[str, Any]) -> None:
    command = [str(word) for word in file.content.get("command", ["${program}"])]
    if "${program}" in command and not Path(str(file.content.get("program"))).is_file():
        raise ValueError(f"program: there is no file {file.content.get('program')!r} in this folder")
    words = file.words(values)
    called = list(words)
    if words[0] == "/usr/bin/env":
        called = list(dropwhile(lambda word: re.match(r"\w+=", word), words[1:]))
    if not called or (shutil.which(called[0]) is None and not called[0].startswith("-")):  # env has options of its own
        raise ValueError(f"command: there is no program {called[0] if called else ''!r}")
    if Path(called[0]).name.startswith("python"):
        options = list(takewhile(lambda word: word.startswith("-") and word != "-c", called[1:]))
        if "-m" in options:
            module = called[1:][options.index("-m") + 1 : options.index("-m") + 2]
            if not module or find_spec(module[0].partition(".")[0]) is None:
                raise ValueError(f"command: Python has no module {module[0] if module else ''!r}")


def _parser(file: SweepFile, first: Mapping[str, Any]) -> ZooCLI:
    """The parser, once the experiment itself has parsed, and its monitor does not contradict the sweep's goal.

    Where the command alone is no experiment, since a parameter is its config or model, the first values belong to it.
    """
    cli, message = _captured(lambda: build(_Parser, zoo_words(file.words({})) or []))
    if cli is None:
        cli, with_values = _captured(lambda: build(_Parser, zoo_words(file.words(first)) or []))
        if cli is None:
            same = _reason(with_values) == _reason(message)
            raise ValueError(f"command{'' if same else ' with the first values'}: {_reason(with_values)}")
    config = cli.config["fit"]
    monitored = {"max": "maximize", "min": "minimize"}.get(config["monitor_mode"])
    if config["monitor"] == file.metric.name and monitored != file.metric.goal:
        raise ValueError(
            f"metric.goal: {file.metric.goal}{'' if 'goal' in file.content['metric'] else ' (by default)'}, but the "
            f"experiment's monitor_mode of {file.metric.name} is {config['monitor_mode']}; write goal: {monitored}"
        )
    return cli


def _try(cli: ZooCLI, file: SweepFile, name: str, values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` about the value of ``name`` if the command with these values does not parse."""
    refusal = _refusal(cli, file, values)
    if refusal is not None:
        value = values[name]
        raise ValueError(f"parameters.{name}: {value!r} ({type(value).__name__}): {refusal}")


def _refusal(cli: ZooCLI, file: SweepFile, values: Mapping[str, Any]) -> str | None:
    """Why the command with these values does not parse; None if it does."""
    words = zoo_words(file.words(values)) or []
    parsed, message = _captured(lambda: cli.parser.parse_args(with_config_paths(words)))
    return _reason(message) if parsed is None else None


def _captured(call: Any) -> tuple[Any, str]:
    """The result of a call, or None and what it printed before it gave up."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return call(), ""
    except SystemExit as stop:
        return None, said.getvalue() or str(stop)


def _reason(message: str) -> str:
    """The lines of a parser's message that say what is wrong, as one."""
    names = (
        r"Option '[^']*' is not accepted",
        r"Key '[^']*' is not expected",
        r"[Uu]nrecognized arguments: \S+",
        r"Expected a dot import path string: \S+",
        r"Did you mean [^\n?]*\?",
    )
    types = (r"Expected an? (?!dot import|path|function|<class 'NoneType')(.+?)(?=\. Got value|\n|$)",)
    for patterns, before in ((types, "expected "), (names, "")):
        found = [hit for pattern in patterns for hit in re.findall(pattern, message)]
        if found:
            plain = dict.fromkeys(re.sub(r"<class '([^']*)'>", r"\1", hit).replace("typing.", "") for hit in found)
            return before + (" or " if before else "; ").join(plain)
    return " ".join(message.removeprefix("error: ").split())[:500]
