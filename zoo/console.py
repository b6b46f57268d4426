"""Where tables are printed, and how a small command reports what is wrong."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console


def console() -> Console:
    """A console that prints words as they are, wide enough for a table where the output is a file and has no width."""
    terminal = Console(markup=False, emoji=False)
    return terminal if terminal.is_terminal else Console(width=140, markup=False, emoji=False)


def run_command(parser: argparse.ArgumentParser, args: Sequence[str]) -> None:
    """Run the function that ``parser`` sets as ``command``; what it raises of a user's mistake is one line, exit 2."""
    given = parser.parse_args(args)
    try:
        given.command(given)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
