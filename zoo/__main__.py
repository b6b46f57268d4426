"""``python -m zoo``: list what there is, commands of families, or fit, validate, test and predict."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "list": "zoo.listing",
    "export": "zoo.exporting",
    "compare": "zoo.comparing",
    "sweep": "zoo.sweeps.command",
    "gallery": "zoo.retrieval.command",
    "semantics": "zoo.language.semantics_command",
    "search": "zoo.dense_retrieval.search_command",
    "mine": "zoo.dense_retrieval.mining_command",
    "probe": "zoo.llm_rl.probe_command",
    "votes": "zoo.llm_rl.rewards.votes",
}
"""The modules of the commands beside LightningCLI's; each has a ``run(words)``."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; ``args`` defaults to the command line."""
    from zoo.startup import light_imports

    words = list(sys.argv[1:] if args is None else args)
    with light_imports():
        from zoo import catalogue, cli

        catalogue.import_families()
    if words[:1] and words[0] in COMMANDS:
        cli.quiet_known_warnings()
        import_module(COMMANDS[words[0]]).run(words[1:])
    else:
        cli.run(words)


def command_line() -> None:
    """As ``main``, with a sentence in place of a traceback where the zoo itself has found what is wrong."""
    try:
        main()
    except (OSError, ValueError) as error:
        from zoo.cli import own_reason

        if (reason := own_reason(error)) is None:
            raise
        sys.exit(f"error: {reason}")


if __name__ == "__main__":
    command_line()
