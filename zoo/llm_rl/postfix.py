"""A small language on a stack of integers, which no model has met: ``dup swap over drop + - *`` and numbers.

As a script it runs the program in a file on the stack that it reads, and prints the stack that is left: with ``2 3``
as input, ``over * -`` prints ``-4``. Python's standard library alone.
"""

import sys
from collections.abc import Sequence

_TAKES = {"dup": 1, "drop": 1, "swap": 2, "over": 2, "+": 2, "-": 2, "*": 2}
_LARGEST = 2**63 - 1


def run(program: str, stack: Sequence[int]) -> list[int]:
    """The stack that ``program`` leaves, its top last.

    With b on top of a: ``dup`` gives a b b, ``swap`` b a, ``over`` a b a, ``drop`` a, ``-`` a - b. A program is a
    straight line, so it always ends.

    Raises:
        ValueError: for an unknown word, too small a stack, and numbers beyond 64 bits; names the word and its place.
    """
    stack = list(stack)
    for place, word in enumerate(program.split(), 1):
        where = f"word {place}, {word[:20]!r}"
        if word.isascii() and word.removeprefix("-").isdigit() and len(word) <= 20:
            stack.append(int(word))
        elif word in _TAKES:
            needed = _TAKES[word]
            if len(stack) < needed:
                raise ValueError(f"{where}: takes {needed} numbers, the stack has {len(stack)}")
            taken = stack[-needed:]
            del stack[-needed:]
            stack += _apply(word, taken)
        else:
            raise ValueError(f"{where}: there is no such word")
        if stack and abs(stack[-1]) > _LARGEST:
            raise ValueError(f"{where}: the number is beyond 64 bits")
    return stack


def _apply(word: str, taken: Sequence[int]) -> list[int]:
    a, b = taken[0], taken[-1]
    if word in ("+", "-", "*"):
        return [a + b if word == "+" else a - b if word == "-" else a * b]
    return {"dup": [b, b], "swap": [b, a], "over": [a, b, a], "drop": []}[word]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        program = file.read()
    try:
        print(*run(program, [int(word) for word in sys.stdin.read().split()]))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
