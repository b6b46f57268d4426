"""Where tables are printed."""

from rich.console import Console


def console() -> Console:
    """A console wide enough for a table of results where the output is a file and has no width."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)
