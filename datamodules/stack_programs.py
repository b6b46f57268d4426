"""Problems and programs in a small language on a stack, ``dup swap over drop + - *`` and numbers (after 2508.06813)."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from operator import add, mul, sub
from typing import NamedTuple

import numpy as np

from datamodules.batches import Prompt
from datamodules.expressions import evaluate
from datamodules.prompt_sets import PromptSet, cut_validation
from datamodules.streams import generator, key, uniform

_TAKES = {"dup": 1, "drop": 1, "swap": 2, "over": 2, "+": 2, "-": 2, "*": 2}
_GIVES = {"dup": 2, "drop": 0, "swap": 2, "over": 3, "+": 1, "-": 1, "*": 1}
_WORDS = ("1", "2", "3", *_TAKES)
_LETTERS = "abc"
_LARGEST_STACK, _LONGEST_TEXT = 4, 12
_POINTS = generator(0).integers(1, 2**20, (len(_LETTERS), 3))  # polynomials that agree there are the same

# Part of a key that tells the uses of one seed apart.
_PICK, _SPLIT, _INPUTS, _PROGRAMS = range(4)


class _Cell(NamedTuple):
    """A number on the stack as an expression in the letters of the input, with its values at three points."""

    text: str
    binds: int  # 0 for a sum or difference, 1 for a product, 2 for a letter or number
    values: tuple[int, ...]


def _step(stack: tuple[_Cell, ...], word: str) -> tuple[_Cell, ...] | None:
    """The stack after a word; None where it has too few numbers."""
    if word.isdigit():
        return (*stack, _Cell(word, 2, (int(word),) * _POINTS.shape[1]))
    if len(stack) < _TAKES[word]:
        return None
    rest, taken = stack[: -_TAKES[word]], stack[-_TAKES[word] :]
    if word in ("dup", "drop"):
        return (*rest, *taken * _GIVES[word])
    below, top = taken
    moved = {"swap": (top, below), "over": (below, top, below)}
    return (*rest, *(moved[word] if word in moved else (_joined(word, below, top),)))


def _joined(word: str, a: _Cell, b: _Cell) -> _Cell:
    binds = int(word == "*")
    left = f"({a.text})" if a.binds < binds else a.text
    right = f"({b.text})" if b.binds < binds + (word != "+") and b.binds < 2 else b.text
    function = {"+": add, "-": sub, "*": mul}[word]
    return _Cell(f"{left}{word}{right}", binds, tuple(map(function, a.values, b.values)))


def _run(program: Sequence[str], stack: tuple[_Cell, ...]) -> tuple[_Cell, ...] | None:
    left: tuple[_Cell, ...] | None = stack
    for word in program:
        if left is not None:
            left = _step(left, word)
    return left


class _Problem(NamedTuple):
    inputs: int
    outputs: tuple[str, ...]
    program: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{' '.join(_LETTERS[: self.inputs])} -> {' '.join(self.outputs)}"


def _problems(inputs: int, longest: int) -> Iterator[_Problem]:
    """What programs of up to ``longest`` words do to ``inputs`` numbers, each once, with one of its shortest programs.

    Only what needs all of its inputs: ``a b -> a b*b`` is ``a -> a*a`` with a number beneath.
    """
    start = tuple(_Cell(_LETTERS[at], 2, tuple(_POINTS[at].tolist())) for at in range(inputs))
    seen = {tuple(cell.values for cell in start)}
    level: list[tuple[tuple[_Cell, ...], tuple[str, ...]]] = [(start, ())]
    for _ in range(longest):
        following = []
        for stack, program in level:
            for word in _WORDS:
                after = _step(stack, word)
                if after is None or len(after) > _LARGEST_STACK or any(len(c.text) > _LONGEST_TEXT for c in after):
                    continue
                values = tuple(cell.values for cell in after)
                if values in seen:
                    continue
                seen.add(values)
                following.append((after, (*program, word)))
                if after and _run((*program, word), start[1:]) is None:
                    yield _Problem(inputs, tuple(cell.text for cell in after), (*program, word))
        level = following


class StackProblems(PromptSet):
    """Problems such as ``a b -> b a*b``: the program that leaves this on a stack of a and b (``swap over *``).

    The prompt is the problem and a line break, the completion one of the shortest programs. ``info`` has ``tests``,
    stacks as ``test_code`` with what is to be left as ``expected_output``, worked out from the problem's text and not
    by the program; ``inputs``; and ``difficulty``, the length of the program in words. Lengths are as even as they can
    be, there being few short programs; no two problems are alike, however they are written.

    Args:
        train: problems to train on, ``val`` included.
        test: problems to test with.
        val: of ``train``, those to validate with.
        tests: of each problem.
        longest: words of the longest program.
        seed: of which problems there are, their split and their tests.
    """

    name = "stack problems"

    def __init__(
        self, train: int = 300, test: int = 100, val: int = 0, tests: int = 5, longest: int = 4, seed: int = 0
    ) -> None:
        for name, value in {"train": train, "test": test}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 1 <= tests <= 50:
            raise ValueError(f"tests={tests}: must be 1 to 50")
        if not 1 <= longest <= 5:
            raise ValueError(f"longest={longest}: must be 1 to 5")
        self.sizes, self.val, self.tests, self.longest, self.seed = (train, test), val, tests, longest, seed

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``."""
        train, test = self.sizes
        chosen = self._chosen(train + test)
        order = np.argsort(uniform(key(self.seed, _SPLIT), len(chosen)), kind="stable").tolist()
        prompts = [self._prompt(number, chosen[number]) for number in order]
        return cut_validation({"train": prompts[:train], "test": prompts[train:]}, self.val, self.seed)

    def _chosen(self, count: int) -> list[_Problem]:
        """Problems of each length by turns, in an order drawn by the seed."""
        found = [problem for inputs in range(1, len(_LETTERS) + 1) for problem in _problems(inputs, self.longest)]
        if len(found) < count:
            raise ValueError(f"train + test = {count}: there are {len(found)} problems for longest={self.longest}")
        drawn = np.argsort(uniform(key(self.seed, _PICK), len(found)), kind="stable").tolist()
        turn: dict[int, int] = {}
        turns = []
        for at in drawn:
            length = len(found[at].program)
            turn[length] = turn.get(length, 0) + 1
            turns.append((turn[length], length, at))
        return [found[at] for _, _, at in sorted(turns)[:count]]

    def _prompt(self, number: int, problem: _Problem) -> Prompt:
        draws = generator(self.seed, _INPUTS, number)
        tests, given = list[dict[str, str]](), set[tuple[int, ...]]()
        while len(tests) < self.tests:
            stack = tuple(draws.integers(2, 100, problem.inputs).tolist())
            if stack not in given:
                given.add(stack)
                tests.append({"test_code": _line(stack), "expected_output": _line(_left(problem, stack))})
        program = " ".join(problem.program)
        info = {"tests": tests, "inputs": problem.inputs, "difficulty": len(problem.program)}
        return Prompt(f"stack-{number}", f"{problem.text}\n", None, program, info)


def _left(problem: _Problem, stack: Sequence[int]) -> list[int]:
    """What a problem's text says of these inputs."""
    letters = {ord(letter): str(value) for letter, value in zip(_LETTERS, stack, strict=False)}
    return [int(evaluate(output.translate(letters))) for output in problem.outputs]


def _line(stack: Sequence[int]) -> str:
    return " ".join(map(str, stack))


class StackPrograms(PromptSet):
    """Random programs to learn the language from, as plain text: such as ``7 4 swap over -``, which run as they are.

    Args:
        train: programs to train on.
        val, test: programs to validate and to test with, other ones.
        longest: words at most, the numbers in front included; 4 to 10, which keeps numbers within 64 bits.
        results: what a program leaves stands behind it, as in ``7 4 swap over - -> 4 3``.
        seed: of all draws.
    """

    name = "stack programs"

    def __init__(
        self,
        train: int = 20_000,
        val: int = 0,
        test: int = 0,
        longest: int = 10,
        results: bool = False,
        seed: int = 0,
    ) -> None:
        if train < 1 or val < 0 or test < 0:
            raise ValueError(f"train={train}, val={val}, test={test}: must be at least 1, 0 and 0")
        if not 4 <= longest <= 10:
            raise ValueError(f"longest={longest}: must be 4 to 10")
        self.sizes, self.longest, self.results, self.seed = (train, val, test), longest, results, seed

    def load(self) -> dict[str, list[Prompt]]:
        """As in ``PromptSet``; the prompts are empty, their completions are the programs."""
        texts = iter(self._texts)
        splits = zip(("train", "val", "test"), [list(islice(texts, size)) for size in self.sizes], strict=True)
        return {
            split: [Prompt(f"program-{split}-{at}", "", None, text) for at, text in enumerate(some)]
            for split, some in splits
            if some
        }

    @cached_property
    def _texts(self) -> list[str]:
        """All different, so that none is in two splits."""
        wanted, row = sum(self.sizes), 0
        found: dict[str, None] = {}
        while len(found) < wanted:
            before, rows = len(found), np.arange(row, row + wanted)
            for chance in uniform(key(self.seed, _PROGRAMS, rows), 2 + self.longest).tolist():
                found[self._text(chance)] = None
            if len(found) - before < 0.05 * wanted:
                raise ValueError(f"longest={self.longest}: too few programs are so short, {wanted} are asked for")
            row += wanted
        return list(found)[:wanted]

    def _text(self, chance: Sequence[float]) -> str:
        numbers = 1 + int(chance[0] * 3)
        length, depth = numbers + 1 + int(chance[1] * (self.longest - numbers)), 0
        words: list[str] = []
        for at, draw in enumerate(chance[2 : 2 + length]):
            choice = [str(number) for number in range(1, 10)] if at < numbers else _POSSIBLE[depth]
            words.append(choice[int(draw * len(choice))])
            depth = _depth(depth, words[-1])
        if self.results:
            words += ["->", _line([cell.values[0] for cell in _run(words, ()) or ()])]
        return " ".join(words)


def _depth(depth: int, word: str) -> int:
    return depth + 1 if word.isdigit() else depth - _TAKES[word] + _GIVES[word]


_POSSIBLE = {  # words by the number of numbers on the stack, some of which are left
    depth: [word for word in _WORDS if _TAKES.get(word, 0) <= depth and 1 <= _depth(depth, word) <= _LARGEST_STACK]
    for depth in range(1, _LARGEST_STACK + 1)
}
