"""Sums, differences and products to work out, with or without the steps between: prompts that need no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from datamodules.batches import Prompt
from datamodules.prompt_sets import PromptSet
from datamodules.streams import key, uniform

Scratchpad = Literal["none", "steps", "optional"]
TRIGGER = "#### "
_HELD_OUT = {"test": (0.0, 0.1), "val": (0.1, 0.2), "train": (0.2, 1.0)}  # shares of all sets of numbers
_ATTEMPTS = 1000

# Part of a key that tells the uses of one seed apart.
_SPLIT, _LEVEL, _EXPRESSION, _SCRATCHPAD = range(4)


@dataclass(frozen=True)
class Level:
    """Expressions of one difficulty.

    Args:
        digits: of each number, the first of which is not 0 where there are several.
        terms: how many numbers.
        operators: what may stand between two numbers, some of ``+-*``.
        weight: how often it comes, beside those of the other levels.
    """

    digits: int = 2
    terms: int = 2
    operators: str = "+-"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 15:
            raise ValueError(f"digits={self.digits}: must be 1 to 15")
        if self.terms < 2:
            raise ValueError(f"terms={self.terms}: must be at least 2")
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"operators={self.operators!r}: must be some of +-*")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight}: must be above 0")

    def expressions(self, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers [N, terms] and places of operators [N, terms - 1] for ``chance`` [N, 2 terms - 1] in [0, 1)."""
        low, high = 0 if self.digits == 1 else 10 ** (self.digits - 1), 10**self.digits
        numbers = low + (chance[:, : self.terms] * (high - low)).astype(np.int64)
        return numbers, (chance[:, self.terms :] * len(self.operators)).astype(np.int64)


class Arithmetic(PromptSet):
    """Prompts such as ``12+34=`` with the answer ``46``.

    A prompt is a function of the seed, its split and its place. The splits share no set of numbers: all expressions of
    the same numbers, in any order, are in one. Of each level's sets a tenth is for testing, a tenth for validation.

    Args:
        levels: mixture of difficulties; ``info`` of a prompt has its ``digits`` and ``terms``.
        scratchpad: the completion is the answer alone (``none``), the partial results, place by place, and then the
            answer behind ``####`` (``steps``), or this with or without the partial results, as often (``optional``).
        train, val, test: prompts of each split.
        seed: of all draws, and of what is held out.
    """

    def __init__(
        self,
        levels: Sequence[Level] = (Level(1), Level(2), Level(3)),
        scratchpad: Scratchpad = "none",
        train: int = 20_000,
        val: int = 500,
        test: int = 1_000,
        seed: int = 0,
    ) -> None:
        if not levels:
            raise ValueError("levels is empty: give at least one")
        if scratchpad not in get_args(Scratchpad):
            raise ValueError(f"scratchpad={scratchpad!r}: must be one of {', '.join(get_args(Scratchpad))}")
        self.sizes = {"train": train, "val": val, "test": test}
        for split, size in self.sizes.items():
            if size < (split == "train"):
                raise ValueError(f"{split}={size}: must be at least {int(split == 'train')}")
        self.levels, self.scratchpad, self.seed = tuple(levels), scratchpad, seed

    def load(self) -> dict[str, list[Prompt]]:
        return {split: self._prompts(split, size) for split, size in self.sizes.items() if size}

    def _prompts(self, split: str, size: int) -> list[Prompt]:
        place, rows = list(_HELD_OUT).index(split), np.arange(size)
        bounds = np.cumsum([level.weight for level in self.levels])
        drawn = uniform(key(self.seed, _LEVEL, place, rows), 1)[:, 0] * bounds[-1]
        level_of = np.searchsorted(bounds[:-1], drawn, side="right")
        steps = uniform(key(self.seed, _SCRATCHPAD, place, rows), 1)[:, 0] < 0.5
        found: dict[int, Prompt] = {}
        for number, level in enumerate(self.levels):
            own = rows[level_of == number]
            for row, numbers, chosen in zip(own.tolist(), *self._expressions(split, place, level, own), strict=True):
                operators = [level.operators[at] for at in chosen.tolist()]
                found[row] = self._prompt(f"{split}-{row}", numbers.tolist(), operators, bool(steps[row]), level)
        return [found[row] for row in rows.tolist()]

    def _expressions(self, split: str, place: int, level: Level, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and operators of the prompts ``rows`` of a split: for each the first draw that belongs there."""
        numbers = np.zeros((len(rows), level.terms), np.int64)
        operators = np.zeros((len(rows), level.terms - 1), np.int64)
        open_ = np.arange(len(rows))
        for attempt in range(_ATTEMPTS):
            if not len(open_):
                return numbers, operators
            chance = uniform(key(self.seed, _EXPRESSION, place, rows[open_], attempt), 2 * level.terms - 1)
            numbers[open_], operators[open_] = level.expressions(chance)
            open_ = open_[~self._belongs(numbers[open_], split)]
        raise ValueError(f"{level}: none of its expressions falls to the split {split}: use more digits or terms")

    def _belongs(self, numbers: np.ndarray, split: str) -> np.ndarray:
        """[N] bool: whether the sets of numbers [N, terms] are those of a split."""
        chance = uniform(key(self.seed, _SPLIT, *np.sort(numbers, 1).T), 1)[:, 0]
        low, high = _HELD_OUT[split]
        return (low <= chance) & (chance < high)

    def _prompt(self, id: str, numbers: list[int], operators: list[str], steps: bool, level: Level) -> Prompt:
        text = str(numbers[0]) + "".join(f"{sign}{b}" for sign, b in zip(operators, numbers[1:], strict=True)) + "="
        lines, value = worked(numbers, operators)
        answer = completion = str(value)
        if self.scratchpad != "none":
            shown = lines if steps or self.scratchpad == "steps" else []
            completion = "\n".join([*shown, TRIGGER + answer])
        return Prompt(id, text, answer, completion, {"digits": level.digits, "terms": level.terms})


def worked(numbers: Sequence[int], operators: Sequence[str]) -> tuple[list[str], int]:
    """The partial results and the value of ``numbers[0] operators[0] numbers[1] ...``, products before the rest.

    The second number of each operation is taken place by place: 15+27 is ``15+20=35`` and ``35+7=42``, 6*27 is
    ``6*20=120``, ``6*7=42`` and ``120+42=162``.

    Args:
        numbers: not negative.
        operators: ``+``, ``-`` or ``*``, one fewer.
    """
    rest, signs, lines = list(numbers), list(operators), list[str]()
    while signs:
        at = signs.index("*") if "*" in signs else 0
        sign, b = signs.pop(at), rest.pop(at + 1)
        rest[at] = _product(rest[at], b, lines) if sign == "*" else _moved(rest[at], sign, _places(b), lines)
    return lines, rest[0]


def _places(number: int) -> list[int]:
    """305 is [300, 5]."""
    digits = str(number)
    return [int(d) * 10 ** (len(digits) - 1 - at) for at, d in enumerate(digits) if d != "0"] or [0]


def _moved(a: int, sign: str, parts: Sequence[int], lines: list[str]) -> int:
    for part in parts:
        total = a + part if sign == "+" else a - part
        lines.append(f"{a}{sign}{part}={total}")
        a = total
    return a


def _product(a: int, b: int, lines: list[str]) -> int:
    parts = [a * part for part in _places(b)]
    lines += [f"{a}*{part}={result}" for part, result in zip(_places(b), parts, strict=True)]
    return _moved(parts[0], "+", parts[1:], lines)
