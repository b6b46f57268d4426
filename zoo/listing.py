"""``python -m zoo list``: methods, configs and checkpoints in tables."""

import argparse
from collections.abc import Sequence
from itertools import takewhile

from rich.table import Table

from zoo import catalogue
from zoo.console import console


def run(args: Sequence[str]) -> None:
    """Print the tables; ``args`` are the command line's words after ``list``."""
    parser = argparse.ArgumentParser(prog="python -m zoo list", description="Show what the zoo holds.")
    parser.add_argument("what", nargs="?", choices=["methods", "configs", "checkpoints"], help="only this table")
    what = parser.parse_args(args).what
    tables = {"methods": _methods, "configs": _configs, "checkpoints": _checkpoints}
    for name, table in tables.items():
        if what in (None, name):
            console().print(table())


def _methods() -> Table:
    table = Table("method", "task", "default config", "strategies", "status", "papers", title="Methods")
    for m in catalogue.methods():
        table.add_row(m.name, m.task, m.config, ", ".join(m.strategies), m.status, "; ".join(m.papers))
    return table


def _configs() -> Table:
    table = Table("config", "what it runs", title="Configs (python -m zoo fit --config NAME)")
    for name in catalogue.configs() + catalogue.overlays():
        table.add_row(name, _first_sentence(catalogue.find_config(name).read_text(encoding="utf-8")))
    return table


def _first_sentence(config: str) -> str:
    """Of the comment that a config starts with."""
    comment = " ".join(line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), config.splitlines()))
    return comment.partition(". ")[0].removesuffix(".")


def _checkpoints() -> Table:
    table = Table("checkpoint", "made by", "measured", "licence", title="Checkpoints (init_from: NAME)")
    for c in catalogue.checkpoints():
        table.add_row(c.name, c.config, c.metrics, c.licence)
    return table
