"""A W&B sweep file: read, checked, and its command with a trial's values filled in."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.catalogue import find_config
from zoo.sweeps.parameters import Parameter, is_number, read_parameter
from zoo.sweeps.stopping import Hyperband

KEYS = {"program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"}
DESCRIBING = {"name", "description", "project", "entity", "apiVersion", "kind"}
"""Top-level keys that change no trial."""
METHODS = ("grid", "random", "bayes")
DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


@dataclass(frozen=True)
class Metric:
    """What a sweep is about: ``goal`` is minimize or maximize; a trial that reaches ``target`` ends the sweep.

    W&B's ``impute`` is for its own search; a local one learns nothing of a failed trial.
    """

    name: str
    goal: str
    target: float | None = None

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` is strictly better than ``other``."""
        return value > other if self.goal == "maximize" else value < other

    def reached(self, value: float) -> bool:
        """Whether ``value`` is as good as the target."""
        return self.target is not None and not self.better(self.target, value)


@dataclass(frozen=True)
class SweepFile:
    """A checked sweep file; ``content`` is all of it, as W&B takes it."""

    path: Path
    content: Mapping[str, Any]
    method: str
    metric: Metric
    parameters: Mapping[str, Parameter]
    stopping: Hyperband | None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def searched(self) -> dict[str, Parameter]:
        """The parameters that are not constant."""
        return {name: each for name, each in self.parameters.items() if each.distribution != "constant"}

    @property
    def run_cap(self) -> int | None:
        return self.content.get("run_cap")

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The command of a trial with these values, as a W&B agent expands it.

        ``${interpreter}`` is the Python that runs this, where an agent takes the first ``python`` of the path.

        Raises:
            ValueError: if the command has no or an unknown macro.
        """
        return expand(self.content.get("command", DEFAULT_COMMAND), self.content.get("program"), values)


def expand(command: list[Any], program: str | None, values: Mapping[str, Any]) -> list[str]:
    """A sweep's ``command`` with its macros replaced (see ``SweepFile.words``)."""
    macros: dict[str, list[str]] = {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": [sys.executable],
        "program": [str(program)],
        "args": [f"--{name}={value}" for name, value in values.items()],
        "args_no_hyphens": [f"{name}={value}" for name, value in values.items()],
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in values.items()
            if value is not False
        ],
        "args_append_hydra": [f"+{name}={value}" for name, value in values.items()],
        "args_override_hydra": [f"++{name}={value}" for name, value in values.items()],
        "args_json": [json.dumps(dict(values))],
    }
    if not any(str(word).startswith("${args") for word in command):
        raise ValueError("command: has no ${args}, so no trial would get its values; add it as the last word")
    words: list[str] = []
    for raw in command:
        word = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda m: os.environ.get(m[1], m[1]), str(raw))
        if not (word.startswith("${") and word.endswith("}")):
            words.append(word)
        elif word[2:-1] in macros:
            words += macros[word[2:-1]]
        else:
            if word == "${args_json_file}":
                raise ValueError("command: ${args_json_file} is not in local sweeps; take ${args_json}")
            raise ValueError(f"command: unknown {word}; known are {', '.join(f'${{{name}}}' for name in macros)}")
    return words


def read_sweep(name: str, local: bool = True) -> SweepFile:
    """The sweep file at a path, or a shipped one by its short name, such as ``sweeps/few_shot_protonet``.

    Args:
        name: path or short name.
        local: refuse what W&B alone can do.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: names the field, what is wrong with it and what to do.
    """
    path = find_config(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _checked(path, content, local)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(path: Path, content: Any, local: bool) -> SweepFile:
    if not isinstance(content, dict):
        raise ValueError("is no sweep file: it has no keys")
    if local and (unknown := sorted(content.keys() - KEYS - DESCRIBING)):
        raise ValueError(
            f"{unknown[0]}: no such key in a local sweep; there are {', '.join(sorted(KEYS | DESCRIBING))}"
        )
    if content.get("method") not in METHODS:
        raise ValueError(f"method: {content.get('method')!r} is not one of {', '.join(METHODS)}")
    given = content.get("parameters")
    if not isinstance(given, dict) or not given:
        raise ValueError("parameters: must have at least one option of the command")
    if odd := [name for name in given if not isinstance(name, str)]:
        raise ValueError(f"parameters: the name {odd[0]!r} ({type(odd[0]).__name__}) must be text; put it in quotes")
    cap = content.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise ValueError(f"run_cap: {cap!r} must be a whole number of at least 1")
    command = content.get("command", DEFAULT_COMMAND)
    if not isinstance(command, list) or not command:
        raise ValueError(f"command: {command!r} must be a list of words")
    stop = content.get("early_terminate")
    return SweepFile(
        path,
        content,
        content["method"],
        _metric(content.get("metric"), local),
        {name: read_parameter(name, given[name], local) for name in sorted(given)},  # W&B sorts them too
        None if stop is None else Hyperband.of(stop),
    )


def _metric(given: Any, local: bool) -> Metric:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError("metric: must have a name, such as {name: val/accuracy, goal: maximize}")
    if local and (unknown := sorted(given.keys() - {"name", "goal", "target", "impute"})):
        raise ValueError(f"metric.{unknown[0]}: not known in a local sweep; there are name, goal, target and impute")
    goal, target = given.get("goal", "minimize"), given.get("target")
    if goal not in ("minimize", "maximize"):
        raise ValueError(f"metric.goal: {goal!r} is neither minimize nor maximize")
    if target is not None and not is_number(target):
        raise ValueError(f"metric.target: {target!r} is no number")
    return Metric(given["name"], goal, target)
