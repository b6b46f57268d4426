"""What the benchmarks share: sides in turn, processor seconds, and a table of medians with their ratio."""

import argparse
import logging
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import torch


class Row(NamedTuple):
    """One line of the table; ``words`` says what the quotient of the medians, ours to the reference's, is."""

    what: str
    unit: str
    ours: list[float]
    reference: list[float]
    words: str = "{:.3f} of the time"

    def markdown(self) -> str:
        sides = [f"{statistics.median(x):.4g} ({min(x):.4g}-{max(x):.4g})" for x in (self.ours, self.reference)]
        ratio = statistics.median(self.ours) / statistics.median(self.reference)
        return f"| {self.what} | {self.unit} | {sides[0]} | {sides[1]} | {self.words.format(ratio)} |"


def in_turn(repeats: int, *sides: Callable[[], Any], warm_up: bool = True) -> list[list[Any]]:
    """All sides ``repeats`` times in turn, once more before that to warm up; the figures of each."""
    figures = [[side() for side in sides] for _ in range(repeats + warm_up)][warm_up:]
    return [list(column) for column in zip(*figures, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of all threads: on a busy machine the time on the clock tells of other work."""
    start = process_time()
    work()
    return process_time() - start


def begin(threads: int) -> None:
    """Threads of torch, and silence of the libraries."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)


def head(threads: int, columns: str) -> None:
    """How the table below was made, and its first line."""
    print(f"`python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}`: {os.cpu_count()} CPUs,")
    print(f"{platform.machine()}, {threads} thread(s), torch {torch.__version__}; medians (min-max).\n")
    print(f"{columns}\n|{' --- |' * (columns.count('|') - 1)}")


def report(
    args: argparse.Namespace,
    measurements: Mapping[str, Callable[[argparse.Namespace], Iterator[Row]]],
    library: str,
    needing: Collection[str],
) -> None:
    """The table of all measurements, or of ``args.only``, without those ``needing`` a library that is not there."""
    head(args.threads, "| what; reference | unit | ours | reference | ours takes or is |")
    left_out = []
    for name in [args.only] if args.only else measurements:
        if name in needing and find_spec(library) is None:
            left_out.append(name)
            continue
        for row in measurements[name](args):
            print(row.markdown(), flush=True)
    if left_out:
        print(f"\nLeft out, as {library.replace('_', '-')} is not installed: {', '.join(left_out)}.")
