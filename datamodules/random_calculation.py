"""Arithmetic that nobody can have learnt by heart: RandomCalculation (arXiv 2507.10532), drawn anew by seed."""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from datamodules.batches import Prompt
from datamodules.expressions import evaluate
from datamodules.prompt_sets import PromptSet
from datamodules.streams import key

INSTRUCTION = (
    r"Evaluate this LaTeX numerical expression step-by-step and give the final value within \boxed{}: "  # verbatim
)
Parentheses = Literal["official", "faithful"]

# Part of a key that tells the uses of one seed apart.
_DRAWS, _ORDER, _SPLIT = range(3)


class Expression(NamedTuple):
    """An expression in LaTeX and the number of its operators, fractions and powers not counted."""

    text: str
    steps: int


def basic(largest: int = 99, integers_only: bool = False) -> list[Expression]:
    r"""Level 0: integers 0 to 99, fractions i/2 to i/9, squares and cubes: 1,088 for ``largest`` = 99.

    Fractions are not reduced and may be whole numbers, such as ``\frac{80}{2}``.
    """
    texts = [str(i) for i in range(largest + 1)]
    if not integers_only:
        texts += [rf"\frac{{{i}}}{{{d}}}" for d in range(2, 10) for i in range(1, largest + 1)]
        texts += [f"{i}^{power}" for power in (2, 3) for i in range(2, largest + 1)]
    return [Expression(text, 0) for text in texts]


def join(left: Expression, right: Expression, operator: str, paren_mode: Parentheses = "official") -> Expression:
    """Two expressions with an operator between them.

    Around ``*`` and ``/`` an operand that has operators itself is put in parentheses, around ``+`` and ``-`` none: the
    official generator writes a - (c + d) as a-c+d, so its answers are those of the text. ``faithful`` puts
    parentheses around what is subtracted too, so that the text means what was drawn.
    """
    product = operator in "*/"
    first = f"({left.text})" if product and left.steps else left.text
    wrapped = right.steps and (product or (operator == "-" and paren_mode == "faithful"))
    second = f"({right.text})" if wrapped else right.text
    return Expression(f"{first}{operator}{second}", left.steps + right.steps + 1)


def draw_pools(
    level: int,
    per_split: int,
    seed: int,
    paren_mode: Parentheses = "official",
    start: Sequence[Expression] | None = None,
    operators: str = "+-*/",
) -> list[list[Expression]]:
    """The pools of levels 0 to ``level`` by the official generator's procedure.

    Level n gets ``per_split`` expressions for each j in 0 to ceil(n / 2) - 1: operands from the levels j and n - 1 - j,
    an operator, and the two in either order. A level's draws do not depend on how many levels follow.
    """
    pools = [list(start or basic())]
    for n in range(1, level + 1):
        stream, pool = random.Random(int(key(seed, n, _DRAWS))), []
        for j in range((n + 1) // 2):
            left, right = pools[j], pools[n - 1 - j]
            for _ in range(per_split):
                a, b = stream.choice(left), stream.choice(right)
                operator = stream.choice(operators)
                if stream.random() < 0.5:
                    a, b = b, a
                pool.append(join(a, b, operator, paren_mode))
        pools.append(pool)
    return pools


def answer_text(expression: str) -> str | None:
    """The value in 15 digits; None where there is none, it is no float, or 15 digits miss it by 0.001."""
    try:
        value = float(evaluate(expression))
    except (ZeroDivisionError, OverflowError):
        return None
    text = f"{value:.15g}"
    return text if abs(float(text) - value) < 1e-3 else None


class RandomCalculation(PromptSet):
    r"""Expressions of a number of steps to compute; the answer is to be put in ``\boxed{}``.

    Args:
        level: number of operators, or several such numbers, each of which gives ``keep`` prompts.
        max_steps: highest level that may be asked for.
        per_split: expressions drawn for each way to share a level's steps between two operands.
        keep: prompts of a level.
        train: of these, those to train on, ``val`` included; the others are the test.
        val: of ``train``, those to validate with.
        seed: of all draws.
        paren_mode: ``official`` or ``faithful``, see ``join``.
        dedup: leave out an expression that came before, so that train and test share none; the official generator
            does not look.
        pool: what level 0 has, ``all`` or ``integers`` alone.
        largest: of integers, numerators and bases.
        operators: to draw from.
    """

    def __init__(
        self,
        level: int | list[int] = 5,
        max_steps: int = 20,
        per_split: int = 1200,
        keep: int = 1000,
        train: int = 700,
        val: int = 0,
        seed: int = 0,
        paren_mode: Parentheses = "official",
        dedup: bool = True,
        pool: Literal["all", "integers"] = "all",
        largest: int = 99,
        operators: str = "+-*/",
    ) -> None:
        self.levels = [level] if isinstance(level, int) else list(level)
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"level={level}: give one number, or a list of different ones")
        for n in self.levels:
            if not 0 <= n <= max_steps:
                raise ValueError(f"level={n}: must be from 0 to max_steps={max_steps}; raise max_steps for longer ones")
        if per_split < 1:
            raise ValueError(f"per_split={per_split}: must be at least 1")
        if not 0 <= val < train <= keep:
            raise ValueError(f"val={val}, train={train}, keep={keep}: must be 0 <= val < train <= keep")
        if largest < 2:
            raise ValueError(f"largest={largest}: must be at least 2")
        if not operators or set(operators) - set("+-*/"):
            raise ValueError(f"operators={operators!r}: must be some of +-*/")
        self.start = basic(largest, pool == "integers")
        for n in self.levels:
            if keep > (size := per_split * ((n + 1) // 2) or len(self.start)):
                raise ValueError(f"keep={keep}: level {n} has a pool of {size}; lower keep or raise per_split")
        self.per_split, self.keep, self.train, self.val, self.seed = per_split, keep, train, val, seed
        self.paren_mode, self.dedup, self.operators = paren_mode, dedup, operators

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``; the levels one after the other in each split."""
        pools = draw_pools(max(self.levels), self.per_split, self.seed, self.paren_mode, self.start, self.operators)
        splits: dict[str, list[Prompt]] = {"train": [], "val": [], "test": []}
        for n in self.levels:
            kept = self._kept(n, list(pools[n]))
            random.Random(int(key(self.seed, n, _SPLIT))).shuffle(kept)
            cut = self.train - self.val
            splits["train"] += kept[:cut]
            splits["val"] += kept[cut : self.train]
            splits["test"] += kept[self.train :]
        return {split: prompts for split, prompts in splits.items() if prompts}

    def _kept(self, level: int, pool: list[Expression]) -> list[Prompt]:
        """The first ``keep`` of a shuffled pool that have a value; an id is a place in the shuffled pool."""
        random.Random(int(key(self.seed, level, _ORDER))).shuffle(pool)
        kept: list[Prompt] = []
        seen: set[str] = set()
        for place, (text, _) in enumerate(pool):
            if (self.dedup and text in seen) or (answer := answer_text(text)) is None:
                continue
            seen.add(text)
            info = {"expression": text, "level": level}
            kept.append(Prompt(f"level{level}-{place}", INSTRUCTION + text, answer, info=info))
            if len(kept) == self.keep:
                return kept
        raise ValueError(
            f"keep={self.keep}: only {len(kept)} of the {len(pool)} expressions of level {level} have a value"
            + (" and differ" if self.dedup else "")
            + "; lower keep or raise per_split"
        )
