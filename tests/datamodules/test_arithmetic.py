"""Arithmetic prompts: what they are worth, their steps, and what is held out."""

import re
from collections import Counter

import pytest

from datamodules.arithmetic import Arithmetic, Level, worked
from datamodules.batches import Prompt

MIXED = [Level(1), Level(2, 2, "+-*"), Level(3, 3, "+-*", weight=2)]


def numbers_of(prompt: Prompt) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in re.findall(r"\d+", prompt.text)))


def value_of(text: str) -> int:
    """By Python's own rules, on text that is checked to hold nothing but numbers and signs."""
    assert re.fullmatch(r"-?\d+([-+*]\d+)*", text)
    return int(eval(text))


def test_worked_examples() -> None:
    assert worked([15, 27], "+") == (["15+20=35", "35+7=42"], 42)
    assert worked([6, 27], "*") == (["6*20=120", "6*7=42", "120+42=162"], 162)
    assert worked([2, 3, 40], "-*") == (["3*40=120", "2-100=-98", "-98-20=-118"], -118)
    assert worked([305, 402, 0], "-+") == (["305-400=-95", "-95-2=-97", "-97+0=-97"], -97)


def test_answers_are_exact_and_every_step_is_true() -> None:
    data = Arithmetic(MIXED, scratchpad="steps", train=600, val=50, test=50).load()
    for prompt in [prompt for split in data.values() for prompt in split]:
        assert prompt.text.endswith("=")
        assert prompt.answer == str(value_of(prompt.text[:-1]))
        assert prompt.completion is not None
        *lines, last = prompt.completion.split("\n")
        assert last == f"#### {prompt.answer}"
        assert re.findall(r"-?\d+", prompt.completion)[-1] == prompt.answer
        assert lines
        assert all(str(value_of(line.split("=")[0])) == line.split("=")[1] for line in lines)


def test_levels_come_by_weight_with_as_many_digits_and_terms_as_they_say() -> None:
    prompts = Arithmetic(MIXED, train=4000, val=0, test=0).load()["train"]
    count = Counter((prompt.info["digits"], prompt.info["terms"]) for prompt in prompts)
    assert count.keys() == {(1, 2), (2, 2), (3, 3)}
    assert abs(count[3, 3] / 4000 - 0.5) < 0.03
    assert abs(count[1, 2] / 4000 - 0.25) < 0.03
    for prompt in prompts:
        lengths = [len(number) for number in re.findall(r"\d+", prompt.text)]
        assert lengths == [prompt.info["digits"]] * prompt.info["terms"]
        assert prompt.completion == prompt.answer
    signs = Counter(sign for prompt in prompts if prompt.info["digits"] == 3 for sign in prompt.text if sign in "+-*")
    assert all(abs(share / signs.total() - 1 / 3) < 0.03 for share in signs.values())
    assert {number for prompt in prompts if prompt.info["digits"] == 1 for number in numbers_of(prompt)} == {*range(10)}


def test_an_optional_scratchpad_is_in_half_of_the_completions() -> None:
    optional = Arithmetic(scratchpad="optional", train=4000).load()["train"]
    assert abs(sum("\n" in str(prompt.completion) for prompt in optional) / 4000 - 0.5) < 0.03
    steps = Arithmetic(scratchpad="steps", train=4000).load()["train"]
    for some, full in zip(optional, steps, strict=True):
        assert some.text == full.text
        assert some.completion in (full.completion, f"#### {full.answer}")


def test_splits_share_no_set_of_numbers() -> None:
    data = Arithmetic([Level(1), Level(2, 3)], train=5000, val=500, test=500).load()
    sets = {split: {numbers_of(prompt) for prompt in prompts} for split, prompts in data.items()}
    assert not sets["train"] & sets["val"]
    assert not sets["train"] & sets["test"]
    assert not sets["val"] & sets["test"]
    of_two = {split: {numbers for numbers in own if len(numbers) == 2} for split, own in sets.items()}
    assert sum(map(len, of_two.values())) == 55  # all pairs of digits, in any order
    assert len({prompt.id for prompts in data.values() for prompt in prompts}) == 6000


def test_a_prompt_is_a_function_of_seed_split_and_place() -> None:
    few, many = Arithmetic(MIXED, train=50, val=20).load(), Arithmetic(MIXED, train=500, val=200).load()
    assert many["train"][:50] == few["train"]
    assert many["val"][:20] == few["val"]
    other = Arithmetic(MIXED, train=50, val=20, seed=1).load()
    assert sum(a.text == b.text for a, b in zip(few["train"], other["train"], strict=True)) < 10


def test_wrong_input_is_named() -> None:
    for field, value in {"digits": 0, "terms": 1, "operators": "/", "weight": 0.0}.items():
        with pytest.raises(ValueError, match=f"{field}={value!r}: must be"):
            Level(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels is empty"):
        Arithmetic([])
    with pytest.raises(ValueError, match="scratchpad='long': must be one of none, steps, optional"):
        Arithmetic(scratchpad="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train=0: must be at least 1"):
        Arithmetic(train=0)
