"""RandomCalculation: the official procedure's counts and sizes, exact values, texts that say what answers mean."""

import ast
import math
import operator
import re
import statistics
from fractions import Fraction
from typing import Any

import pytest

from datamodules.batches import Prompt
from datamodules.expressions import evaluate, last_boxed
from datamodules.random_calculation import (
    INSTRUCTION,
    Expression,
    RandomCalculation,
    answer_text,
    basic,
    draw_pools,
    join,
)

WORKED = r"(\frac{80}{2}/\frac{18}{3})*(\frac{80}{3}+40^3/84^3)-\frac{80}{8}"
OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
OPERATORS |= {ast.Div: operator.truediv, ast.Pow: operator.pow}


@pytest.fixture(scope="module")
def pools() -> list[list[Expression]]:
    return draw_pools(10, 1200, seed=0)


def everything(data: RandomCalculation) -> list[Prompt]:
    return [prompt for prompts in data.load().values() for prompt in prompts]


def other_value(text: str) -> Fraction:
    """By Python's own grammar, of which the operators bind as they should."""

    def walk(node: Any) -> Any:
        if isinstance(node, ast.BinOp):
            left, right = walk(node.left), walk(node.right)
            return OPERATORS[type(node.op)](left, int(right) if isinstance(node.op, ast.Pow) else right)
        return Fraction(node.value)

    text = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", text).replace("^", "**")
    value: Fraction = walk(ast.parse(text, mode="eval").body)
    return value


def test_the_worked_expression() -> None:
    assert evaluate(WORKED) == Fraction(4681370, 27783)
    assert answer_text(WORKED) == f"{4681370 / 27783:.15g}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3^2*4", 36),
        ("2*3^2", 18),
        ("10-4-3", 3),
        ("64/4/2", 8),
        ("64/4*2", 32),
        ("2+3*4-5", 9),
        ("(2+3)*4", 20),
        ("-2^2", -4),
        ("2*-3", -6),
        ("2^{10}", 1024),
        (r"\frac{80}{2}", 40),
        (r"\frac{1+2}{\frac{3}{4}}^2", 16),
        (" ( 1.5 + 2 ) ", Fraction(7, 2)),
        ("7-2+3", 8),
    ],
)
def test_values(text: str, value: Fraction | int) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'': expected a number at character 1, found the end"),
        ("1+", r"expected a number at character 3, found the end"),
        ("(1", r"expected '\)' at character 3, found the end"),
        ("1)", r"expected an operator at character 2, found '\)'"),
        ("1 2", r"expected an operator at character 3, found '2'"),
        (r"\frac{1}2", r"expected '\{' at character 9, found '2'"),
        ("2^12", r"expected an exponent of one digit, or a whole number in braces at character 3"),
        ("2**3", r"expected a number at character 3, found '\*'"),
        ("9^{101}", "a power of 101 is too large"),
        ("((9^{99})^{99})^{99}", "is too large"),
        ("(" * 81 + "1" + ")" * 81, "more than 80 levels of brackets"),
        ("__import__('os')", 'cannot read "__import__'),
        (r"\sqrt{2}", r"cannot read '\\\\sqrt"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(text)


def test_what_has_no_value_is_dropped() -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate("1/(2-2)")
    assert answer_text("1/0") is None
    assert answer_text(r"\frac{3}{0}") is None
    assert answer_text("(9^{99})^4") is None  # beyond floats
    assert answer_text(r"99^3*99^3*99+\frac{1}{3}") is None  # 15 digits are not enough
    assert answer_text(r"99^3*99^3+\frac{1}{3}") == "941480149401.333"
    assert answer_text("4/2") == "2"


def test_level_0() -> None:
    texts = [text for text, _ in basic()]
    assert len(texts) == 1088
    assert len(set(texts)) == 1088
    assert (texts[0], texts[99], texts[100], texts[891]) == ("0", "99", r"\frac{1}{2}", r"\frac{99}{9}")
    assert (texts[892], texts[989], texts[990], texts[1087]) == ("2^2", "99^2", "2^3", "99^3")
    assert [text for text, _ in basic(3, integers_only=True)] == ["0", "1", "2", "3"]


def test_pools_have_the_sizes_and_the_operators_of_their_level(pools: list[list[Expression]]) -> None:
    assert [len(pool) for pool in pools] == [1088, *(1200 * math.ceil(n / 2) for n in range(1, 11))]
    for n, pool in enumerate(pools):
        for text, steps in pool[::37]:
            assert steps == n
            assert len(re.findall(r"[-+*/]", text)) == n


def test_a_pool_does_not_depend_on_the_levels_after_it(pools: list[list[Expression]]) -> None:
    assert draw_pools(3, 1200, seed=0) == pools[:4]
    assert draw_pools(1, 1200, seed=1)[1] != pools[1]


def test_operands_operators_and_order_are_drawn_evenly(pools: list[list[Expression]]) -> None:
    pool = [text for text, _ in pools[1]]
    for sign in "+-*/":
        assert 300 - 75 < sum(sign in text for text in pool) < 300 + 75  # 5 standard deviations
    squares = sum("^2" in re.split(r"[-+*/]", text)[0] for text in pool)
    assert abs(squares / 1200 - 98 / 1088) < 0.042
    # level 2 joins a level 0 and a level 1 by a product in half of the draws, with the level 1 first in half of those
    products = [text for text, _ in pools[2] if "(" in text]
    assert 600 - 87 < len(products) < 600 + 87
    assert abs(sum(text[0] == "(" for text in products) / len(products) - 0.5) < 0.11


def test_text_and_answer_agree(pools: list[list[Expression]]) -> None:
    """A second evaluator, by Python's grammar, on the text; this catches values of the drawn tree."""
    prompts = [p for n in (1, 5, 10) for p in everything(RandomCalculation(n))[::9]]
    for prompt in prompts:
        text = str(prompt.info["expression"])
        assert prompt.text == INSTRUCTION + text
        assert evaluate(text) == other_value(text)
        assert float(str(prompt.answer)) == pytest.approx(float(other_value(text)), rel=1e-9)


def test_official_parentheses_change_what_was_drawn_and_faithful_ones_do_not() -> None:
    a, b = Expression("9", 0), join(Expression("5", 0), Expression("2", 0), "+")
    assert join(a, b, "-").text == "9-5+2"
    assert join(a, b, "-", "faithful").text == "9-(5+2)"
    assert join(b, a, "-", "faithful").text == "5+2-9"
    assert join(a, b, "+", "faithful").text == "9+5+2"
    assert (join(a, b, "*").text, join(b, a, "/").text) == ("9*(5+2)", "(5+2)/9")
    assert join(a, Expression(r"\frac{1}{2}", 0), "/") == Expression(r"9/\frac{1}{2}", 1)

    def tree(mode: Any) -> int:
        """How many of 200 joined expressions mean what their operands mean."""
        pool = draw_pools(2, 400, 0, mode, basic(9, True))[2]
        kept = 0
        for (left, right), sign in zip(zip(pool[::2], pool[1::2], strict=True), "+-*/" * 50, strict=True):
            try:
                wanted = OPERATORS[type(ast.parse(f"1{sign}1", mode="eval").body.op)](  # type: ignore[attr-defined]
                    evaluate(left.text), evaluate(right.text)
                )
            except ZeroDivisionError:
                kept += 1
                continue
            kept += evaluate(join(left, right, sign, mode).text) == wanted
        return kept

    assert tree("faithful") == 200
    assert tree("official") < 190


# By an independent run of the procedure: median, 10 % and 90 % quantile of |answer|, whole numbers, characters.
@pytest.mark.parametrize(
    ("level", "median", "low", "high", "whole", "length"),
    [
        (1, 31, 0.45, 5.4e4, 0.201, 20),
        (3, 157, 0.079, 6.4e5, 0.067, 43),
        (5, 591, 0.064, 3.9e6, 0.030, 67),
        (10, 3.4e3, 0.0054, 1.9e8, 0.0043, 124),
    ],
)
def test_sizes_by_level(level: int, median: float, low: float, high: float, whole: float, length: float) -> None:
    prompts = everything(RandomCalculation(level))
    assert len({p.text for p in prompts}) == 1000
    sizes = sorted(abs(float(str(p.answer))) for p in prompts)
    for found, expected in ((sizes[500], median), (sizes[100], low), (sizes[900], high)):
        assert expected / 4 < found < expected * 4
    share = sum("." not in str(p.answer) and "e" not in str(p.answer) for p in prompts) / 1000
    assert abs(share - whole) < max(0.04, whole / 4)
    assert statistics.fmean(len(str(p.info["expression"])) for p in prompts) == pytest.approx(length, rel=0.06)


def test_splits() -> None:
    splits = RandomCalculation([1, 2], val=100).load()
    assert {split: len(prompts) for split, prompts in splits.items()} == {"train": 1200, "val": 200, "test": 600}
    levels = [p.info["level"] for p in splits["test"]]
    assert levels == [1] * 300 + [2] * 300
    ids = [p.id for prompts in splits.values() for p in prompts]
    assert len(set(ids)) == 2000
    texts = {split: {p.text for p in prompts} for split, prompts in splits.items()}
    assert not texts["test"] & (texts["train"] | texts["val"])
    assert RandomCalculation([1, 2], val=100).load() == splits
    assert RandomCalculation(1, val=100).load()["val"] == splits["val"][:100]
    assert RandomCalculation(1, val=100, seed=1).load()["val"] != splits["val"][:100]
    assert "test" not in RandomCalculation(0, keep=500, train=500).load()


def test_small_numbers_repeat_unless_left_out() -> None:
    small: dict[str, Any] = {"pool": "integers", "largest": 9, "operators": "+"}
    one_digit = everything(RandomCalculation(1, keep=90, train=60, **small))
    assert len({p.text for p in one_digit}) == 90
    assert all(re.fullmatch(r"\d\+\d", str(p.info["expression"])) for p in one_digit)
    assert len({p.text for p in everything(RandomCalculation(1, dedup=False, **small))}) <= 100
    with pytest.raises(
        ValueError, match="keep=1000: only 100 of the 1200 expressions of level 1 have a value and diff"
    ):
        RandomCalculation(1, **small).load()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": 21}, "level=21: must be from 0 to max_steps=20"),
        ({"level": [1, 1]}, "level=.*different"),
        ({"level": []}, "level=.*give one number"),
        ({"per_split": 0}, "per_split=0: must be at least 1"),
        ({"keep": 3601}, "keep=3601: level 5 has a pool of 3600"),
        ({"level": 0, "keep": 1089}, "keep=1089: level 0 has a pool of 1088"),
        ({"train": 1001}, "train=1001, keep=1000: must be"),
        ({"val": 700}, "val=700, train=700"),
        ({"operators": "+%"}, "operators='.%': must be some of"),
        ({"largest": 1}, "largest=1: must be at least 2"),
    ],
)
def test_bad_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomCalculation(**wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{5} then \boxed{6 without an end", "5"),
        (r"\boxed{ without an end \boxed {6}", "6"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"} \boxed{}", ""),
        (r"\boxed 5, {6}", None),
        ("5", None),
    ],
)
def test_the_last_whole_box(text: str, found: str | None) -> None:
    assert last_boxed(text) == found
