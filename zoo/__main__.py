"""``python -m zoo``: list what there is, commands of families, or fit, validate, test and predict."""

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; ``args`` defaults to the command line."""
    from zoo.startup import light_imports

    arguments = list(sys.argv[1:] if args is None else args)
    with light_imports():
        from zoo import catalogue, cli, listing

        catalogue.import_families()
    if arguments[:1] == ["list"]:
        listing.run(arguments[1:])
    elif arguments[:1] == ["gallery"]:
        from zoo.retrieval import command

        cli.quiet_known_warnings()
        command.run(arguments[1:])
    elif arguments[:1] == ["semantics"]:
        from zoo.language import semantics_command

        cli.quiet_known_warnings()
        semantics_command.run(arguments[1:])
    elif arguments[:1] == ["search"]:
        from zoo.dense_retrieval import search_command

        cli.quiet_known_warnings()
        search_command.run(arguments[1:])
    elif arguments[:1] == ["mine"]:
        from zoo.dense_retrieval import mining_command

        cli.quiet_known_warnings()
        mining_command.run(arguments[1:])
    elif arguments[:1] == ["probe"]:
        from zoo.llm_rl import probe_command

        cli.quiet_known_warnings()
        probe_command.run(arguments[1:])
    elif arguments[:1] == ["votes"]:
        from zoo.llm_rl.rewards import votes

        cli.quiet_known_warnings()
        votes.run(arguments[1:])
    else:
        cli.run(arguments)


if __name__ == "__main__":
    main()
