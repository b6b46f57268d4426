"""``python -m zoo list``: methods, configs, sweeps and checkpoints in tables."""

import argparse
from collections.abc import Sequence
from itertools import takewhile

from rich.table import Column, Table

from zoo import catalogue
from zoo.console import console


def run(args: Sequence[str]) -> None:
    """Print the tables; ``args`` are the command line's words after ``list``."""
    parser = argparse.ArgumentParser(prog="python -m zoo list", description="Show what the zoo holds.")
    parser.add_argument("what", nargs="?", choices=list(TABLES), help="only this table")
    what = parser.parse_args(args).what
    for name, table in TABLES.items():
        if what in (None, name):
            console().print(table())


def _methods() -> Table:
    table = Table("method", "task", "default config", "strategies", "status", "papers", title="Methods")
    for m in catalogue.methods():
        table.add_row(m.name, m.task, m.config, ", ".join(m.strategies), m.status, "; ".join(m.papers))
    return table


def _configs() -> Table:
    table = Table("config", "what it runs", title="Configs (python -m zoo fit --config NAME)")
    return _explained(table, catalogue.configs() + catalogue.below("overlays"))


def _sweeps() -> Table:
    table = Table("sweep", "what it searches", title="Sweeps (python -m zoo sweep NAME)")
    return _explained(table, catalogue.below("sweeps"))


def _explained(table: Table, names: Sequence[str]) -> Table:
    for name in names:
        table.add_row(name, _first_sentence(catalogue.find_config(name).read_text(encoding="utf-8")))
    return table


def _first_sentence(config: str) -> str:
    """Of the comment that a config starts with."""
    comment = " ".join(line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), config.splitlines()))
    return comment.partition(". ")[0].removesuffix(".")


def _checkpoints() -> Table:
    title = "Checkpoints (zoo.load(NAME), --ckpt_path zoo://NAME, init_from: zoo://NAME)"
    names = [Column(name, no_wrap=True) for name in ("checkpoint", "made by")]
    table = Table(*names, "data", "measured", "MB", "from", "licence", title=title)
    for c in catalogue.checkpoints():
        measured = "\n".join(f"{name}: {value}" for name, value in c.metrics.items())
        table.add_row(c.name, c.config, c.data, measured, f"{c.size / 1e6:.1f}", next(iter(c.source)), c.licence)
    return table


TABLES = {"methods": _methods, "configs": _configs, "sweeps": _sweeps, "checkpoints": _checkpoints}
